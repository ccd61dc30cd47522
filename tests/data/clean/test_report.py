"""The report: what it shows is what the files say, it is one file, and the same files give the same bytes."""

import json
import re
from pathlib import Path

import pytest

from pallava.data.clean.report import _collect, write_report
from pallava.data.clean.run import clean
from pallava.data.sources.base import Pair, to_json
from tests.tiny.records import save_pairs, save_picture


def kept(number: int, **more) -> dict:
    record = to_json(Pair("a", str(number), f"{number}.png", "word " * (20 + number)))
    return {**record, "path": f"{number}.png", "scores": {"words": 20 + number}, "image_size": [96, 80], **more}


def dropped(number: int, name: str, reason: str, score: float | None = None, detail: str = "") -> dict:
    scores = {} if score is None else {name: score}
    return kept(number, filter=name, reason=reason, score=score, detail=detail, scores=scores)


def save_run(folder: Path, kept_rows: list[dict], dropped_rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept_rows))
    (folder / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dropped_rows))
    filters: dict = {name: {"num_in": 0, "dropped": {}} for name in ("words", "image", "duplicates")}
    for row in dropped_rows:
        counts = filters[row["filter"]]["dropped"]
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    source = {
        "num_records": len(kept_rows) + len(dropped_rows) + 1,
        "unread": {"malformed": 1},
        "unread_examples": {"malformed": ["x.json, line 3: not <JSON>"]},
        "filters": filters,
        "num_kept": len(kept_rows),
    }
    summary = {
        "num_records": source["num_records"],
        "num_kept": len(kept_rows),
        "num_pairs": len(kept_rows),
        "filters": list(filters),
        "sources": {"a": source},
        "image_folder": str(folder / "images"),
        "settings": {"min_words": 20, "max_background": 0.98},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        save_picture(tmp_path / "run" / "images" / f"{number}.png", number)
    (tmp_path / "run" / "images" / "32.png").write_bytes(b"broken")
    rows = [
        dropped(30, "words", "few_words", 3),
        dropped(31, "image", "missing"),
        dropped(32, "image", "unreadable"),
        dropped(33, "image", "nearly_empty", 0.991),
        dropped(34, "duplicates", "near duplicate", 3.0, "a:2 (distance 3)"),
        dropped(35, "duplicates", "exact duplicate", 0.0, "a:7"),
    ]
    return save_run(tmp_path / "run", [kept(number) for number in range(30)], rows)


def text_of(folder: Path) -> str:
    write_report(folder)
    return (folder / "index.html").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return re.split(r"<h2>", text.split(f"<h2>{title}</h2>")[1])[0]


def test_counts_are_those_of_the_summary(folder: Path) -> None:
    text = text_of(folder)
    assert "<b>37</b><span>records of 1 source</span>" in text
    assert "<b>81.1 %</b>" in text
    funnel = section(text, "Where the records went")
    cells = ["a", "37", "1", "1", "3", "2", "30", "81.1 %"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in funnel
    assert "<td>duplicates: near duplicate</td><td>1</td><td>1</td>" in text
    assert "x.json, line 3: not &lt;JSON&gt;" in text


def test_sheets_show_a_draw_of_each_reason(folder: Path) -> None:
    text = text_of(folder)
    assert section(text, "Kept of a").count("<figure>") == 12
    assert "12 of 30, drawn at random." in text
    missing = section(text, "Dropped by image: missing")
    assert "no picture" in missing  # its file is there, but was not when it was judged
    assert "no picture" in section(text, "Dropped by image: unreadable")
    assert section(text, "Dropped by image: nearly_empty").count("data:image/jpeg") == 1
    assert "score 0.991" in text


def test_a_caption_is_no_tag(folder: Path) -> None:
    rows = [kept(1, text="<script>alert(1)</script> & more")]
    shown = section(text_of(save_run(folder, rows, [dropped(2, "words", "<b>", 3)])), "Kept of a")
    assert "<b>a:1</b><br>\n&lt;script&gt;alert(1)&lt;/script&gt; &amp; more</figcaption>" in shown
    assert shown.count("<script") == 0


def test_bars_show_what_became_of_the_records(folder: Path) -> None:
    bars = section(text_of(folder), "Where the records went").partition("<table>")[0]
    assert "<h3>a: 81.1 % kept</h3>" in bars
    widths = re.findall(r'<i style="width: ([0-9.]+)%; background: (#\w+)"\s+title="([^"]*)"', bars)
    assert [(width, title) for width, _, title in widths] == [
        ("81.081", "kept: 30 (81.1 %)"),
        ("2.703", "words: 1 (2.7 %)"),
        ("8.108", "image: 3 (8.1 %)"),
        ("5.405", "duplicates: 2 (5.4 %)"),
        ("2.703", "unread: 1 (2.7 %)"),
    ]
    key = re.findall(r'<i style="background: (#\w+)"></i>(\w+)', bars)
    assert key == [(colour, title.partition(":")[0]) for _, colour, title in widths]
    bars = section(text_of(save_run(folder, [], [])), "Where the records went").partition("<table>")[0]
    assert "unread" in bars
    assert "kept:" not in bars


def test_a_duplicate_stands_beside_the_one_that_is_kept(folder: Path) -> None:
    text = text_of(folder)
    for reason, detail in [("near duplicate", "of a:2 (distance 3)"), ("exact duplicate", "of a:7")]:
        shown = section(text, f"Dropped by duplicates: {reason}")
        assert shown.count("data:image/jpeg") == 2
        assert detail in shown


def test_page_needs_nothing_beside_it_and_is_the_same_again(folder: Path) -> None:
    first = text_of(folder)
    links = re.findall(r"(?:src|href)=\"(?!data:|#)([^\"]*)\"", first)
    assert links == []
    assert text_of(folder) == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "dropped.jsonl",
        "images",
        "index.html",
        "kept.jsonl",
        "summary.json",
    ]


def test_the_draw_depends_on_its_seed_and_not_on_the_order(folder: Path) -> None:
    def drawn(seed: int) -> set[str]:
        _, samples, _ = _collect(folder, seed)
        return {row["id"] for row in samples["kept", "a"]}

    first = drawn(0)
    assert len(first) == 12
    assert drawn(1) != first
    lines = (folder / "kept.jsonl").read_text().splitlines(keepends=True)
    (folder / "kept.jsonl").write_text("".join(reversed(lines)))
    assert drawn(0) == first


def test_values_are_counted_on_both_sides(folder: Path) -> None:
    counts, _, _ = _collect(folder)
    assert counts["words"]["kept"][49] == 1
    assert sum(counts["words"]["dropped"].values()) == 6
    assert counts["sides"]["kept"] == {96: 30}
    assert counts["image"] == {"dropped": {0.991: 1}}


def test_a_run_that_kept_nothing(tmp_path: Path) -> None:
    text = text_of(save_run(tmp_path, [], [dropped(1, "image", "missing")]))
    assert "<b>0</b><span>kept</span>" in text
    assert "<td>image: missing</td>" in section(text, "Reasons")


def test_a_run_that_read_nothing(tmp_path: Path) -> None:
    summary = json.loads((save_run(tmp_path, [], []) / "summary.json").read_text())
    summary["sources"]["a"] |= {"num_records": 0, "unread": {}, "unread_examples": {}}
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "num_records": 0}))
    text = text_of(tmp_path)
    assert "No record was dropped." in section(text, "Reasons")
    assert "No record has a value to show." in section(text, "Distributions")


def test_cleaning_writes_it(tmp_path: Path) -> None:
    root = save_pairs(tmp_path / "pairs")
    clean([f"pairs={root}"], tmp_path / "out")
    assert (
        section((tmp_path / "out" / "index.html").read_text(encoding="utf-8"), "Kept of pairs").count("<figure>") == 6
    )
