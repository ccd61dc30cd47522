"""Instruction data: the wording, the counts of the paper, weights, and a file that appears whole or not at all."""

import csv
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from pallava.data.instruction import to_conversation, write_instruction_file
from pallava.data.material import Records, SourceSpec, open_records
from pallava.data.sources.base import Pair, Question, to_json
from pallava.errors import PallavaError
from pallava.prompts import CHOICE_INSTRUCTION

COLUMNS = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]


def make_path_vqa(root: Path, num_rows: int) -> Records:
    (root / "qas").mkdir(parents=True)
    rows = [
        {
            "answer_type": "other",
            "img_id": f"train_{number // 8:04d}",
            "label": {f" gland {number} ": 1},
            "question_id": 100_000_000 + number,
            "question_type": "what",
            "sent": f"What is number {number}?",
        }
        for number in range(num_rows)
    ]
    (root / "qas" / "train_vqa.pkl").write_bytes(pickle.dumps(rows))
    (root / "images" / "train").mkdir(parents=True)
    return open_records(SourceSpec("path-vqa", str(root), "train"))


def make_pmc_vqa(root: Path, num_rows: int) -> Records:
    (root / "images").mkdir(parents=True)
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(num_rows):
            options = [f" {letter}:stain {number} {letter} " for letter in "ABCD"]
            writer.writerow([f"PMC{number}_1.jpg", f"Which stain is {number}?", f"stain {number} B", *options, "B"])
    return open_records(SourceSpec("pmc-vqa", str(root), "train"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sources_of(rows: list[dict]) -> Counter:
    return Counter(row["image"].split("/")[0] for row in rows)


def test_conversations() -> None:
    asked = Question("path-vqa", "1", "a.jpg", "Is it <image> a gland? ", " yes ")
    assert to_conversation(asked) == [
        {"from": "human", "value": "<image>\nIs it  a gland?"},
        {"from": "gpt", "value": "yes"},
    ]
    choice = Question("pmc-vqa", "1", "a.jpg", "Which stain?", "B", ("PAS", "Congo red"), "choice")
    assert to_conversation(choice) == [
        {"from": "human", "value": f"<image>\nWhich stain?\nA. PAS\nB. Congo red\n{CHOICE_INSTRUCTION}"},
        {"from": "gpt", "value": "B"},
    ]


def test_counts_of_the_paper(tmp_path: Path) -> None:
    materials = [make_path_vqa(tmp_path / "pv", 19_755), make_pmc_vqa(tmp_path / "pmc", 15_788)]
    summary = write_instruction_file(materials, tmp_path / "out" / "train.jsonl")
    assert summary.num_written == 35_543
    assert {name: count.num_written for name, count in summary.sources.items()} == {
        "path-vqa": 19_755,
        "pmc-vqa": 15_788,
    }
    rows = read(tmp_path / "out" / "train.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 35_543
    assert sources_of(rows) == {"pv": 19_755, "pmc": 15_788}
    assert summary.image_folder == str(tmp_path)
    assert sources_of(rows[:2000])["pv"] == pytest.approx(1111, abs=100)  # mixed, not one after the other
    first = next(row for row in rows if row["image"].startswith("pv/"))
    assert first["conversations"][1]["value"].startswith("gland ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]


def test_weights_and_seed(tmp_path: Path) -> None:
    def write(name: str, **options) -> list[dict]:
        write_instruction_file(materials, tmp_path / name, **options)
        return read(tmp_path / name)

    materials = [make_path_vqa(tmp_path / "pv", 40), make_pmc_vqa(tmp_path / "pmc", 30)]
    rows = write("a.jsonl", weights={"path-vqa": 2.5, "pmc-vqa": 0.5})
    assert sources_of(rows) == {"pv": 100, "pmc": 15}
    assert len({row["id"] for row in rows}) == 115
    texts = Counter(row["conversations"][0]["value"] for row in rows if row["image"].startswith("pv/"))
    assert Counter(texts.values()) == {2: 20, 3: 20}
    assert write("b.jsonl", weights={"path-vqa": 2.5, "pmc-vqa": 0.5}) == rows
    other = write("c.jsonl", weights={"path-vqa": 2.5, "pmc-vqa": 0.5}, seed=1)
    assert other != rows
    assert {row["id"] for row in other} != {row["id"] for row in rows}


def test_kept_records_of_cleaning(tmp_path: Path) -> None:
    records = [
        Question("pmc-vqa", "7", "figures/b.jpg", "Which?", "A", ("PAS", "Congo red"), "choice"),
        Pair("quilt-1m", "1", "a.jpg", "Glands."),
        Question("pmc-vqa", "8", "figures/b.jpg", "Which?", " ", ("PAS", "Congo red"), "choice"),
    ]
    roots = {"pmc-vqa": "pmc", "quilt-1m": "quilt"}
    lines = [json.dumps({**to_json(one), "path": f"{roots[one.source]}/{one.image}", "scores": {}}) for one in records]
    (tmp_path / "kept.jsonl").write_text("\n".join(lines))
    settings = {"image_folder": str(tmp_path / "sets"), "sources": {name: {} for name in roots}}
    (tmp_path / "summary.json").write_text(json.dumps(settings))
    kept = open_records(str(tmp_path / "kept.jsonl"))
    summary = write_instruction_file([kept], tmp_path / "train.jsonl", image_folder=tmp_path)
    assert [(row["id"], row["image"]) for row in read(tmp_path / "train.jsonl")] == [
        ("pmc-vqa-7", "sets/pmc/figures/b.jpg")
    ]
    assert summary.sources["quilt-1m"].dropped == {"not_a_question": 1}
    assert summary.sources["pmc-vqa"].dropped == {"empty_answer": 1}
    assert summary.examples["empty_answer"] == ["pmc-vqa:8"]


def test_what_the_reader_drops_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "pv"
    make_path_vqa(root, 3)
    path = root / "qas" / "train_vqa.pkl"
    rows = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*rows, {"img_id": "train_0001", "sent": "", "label": {"x": 1}}]))
    summary = write_instruction_file([open_records(f"path-vqa={root}")], tmp_path / "train.jsonl")
    count = summary.sources["path-vqa"]
    assert (count.num_records, count.num_written, sum(count.dropped.values())) == (4, 3, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"bach": 1}}, "a weight is given for 'bach'; the sources are path-vqa"),
        ({"weights": {"path-vqa": 0}}, "expected a number above 0"),
        ({"weights": {"path-vqa": float("nan")}}, "expected a number above 0"),
        ({"weights": {"path-vqa": 0.01}}, "no question to write"),
        ({"image_folder": "/nowhere"}, "is outside the image folder '/nowhere'"),
    ],
)
def test_refused(tmp_path: Path, options: dict, message: str) -> None:
    out = tmp_path / "train.jsonl"
    out.write_text("before")
    with pytest.raises(PallavaError, match=message):
        write_instruction_file([make_path_vqa(tmp_path / "pv", 5)], out, **options)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pv", "train.jsonl"]


def test_same_source_twice_and_unknown_ones(tmp_path: Path) -> None:
    material = make_path_vqa(tmp_path / "pv", 5)
    with pytest.raises(PallavaError, match="given twice"):
        write_instruction_file([material, material], tmp_path / "train.jsonl")
    for text, message in [
        ("vqa-rad=x", "'vqa-rad'"),
        ("x.jsonl", "x.jsonl"),
        (f"bach={tmp_path}", "is not bach"),
    ]:
        with pytest.raises(PallavaError, match=message):
            open_records(text)
    (tmp_path / "kept.jsonl").write_text('{"kind": "captions"}')
    with pytest.raises(PallavaError, match="summary.json' does not exist"):
        open_records(str(tmp_path / "kept.jsonl"))
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(PallavaError, match="is not the summary"):
        open_records(str(tmp_path / "kept.jsonl"))
