"""Instruction data: the wording, the counts of the paper, weights, and a file that appears whole or not at all."""

import csv
import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from pallava.cli import main
from pallava.data.material import Records, SourceSpec, open_records
from pallava.data.sources.base import Pair, Question, to_json
from pallava.data.training_file import write_training_file
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


def test_conversations(tmp_path: Path) -> None:
    questions = [
        Question("path-vqa", "1", "a.jpg", "Is it <image> a gland? ", " yes "),
        Question("pmc-vqa", "1", "a.jpg", "Which stain?", "B", ("PAS", "Congo red"), "choice"),
    ]
    save_kept(tmp_path, questions)
    write_training_file([str(tmp_path / "kept.jsonl")], tmp_path / "train.jsonl")
    rows = {row["id"]: row["conversations"] for row in read(tmp_path / "train.jsonl")}
    assert rows["path-vqa-1"] == [
        {"from": "human", "value": "<image>\nIs it  a gland?"},
        {"from": "gpt", "value": "yes"},
    ]
    assert rows["pmc-vqa-1"] == [
        {"from": "human", "value": f"<image>\nWhich stain?\nA. PAS\nB. Congo red\n{CHOICE_INSTRUCTION}"},
        {"from": "gpt", "value": "B"},
    ]


def save_kept(folder: Path, records: list) -> None:
    lines = [json.dumps({**to_json(one), "path": f"{one.source}/{one.image}", "scores": {}}) for one in records]
    (folder / "kept.jsonl").write_text("\n".join(lines))
    summary = {"image_folder": str(folder / "sets"), "sources": {one.source: {} for one in records}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_counts_of_the_paper(tmp_path: Path) -> None:
    materials = [make_path_vqa(tmp_path / "pv", 19_755), make_pmc_vqa(tmp_path / "pmc", 15_788)]
    summary = write_training_file(materials, tmp_path / "out" / "train.jsonl")
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
        write_training_file(materials, tmp_path / name, **options)
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
    save_kept(tmp_path, records)
    kept = open_records(str(tmp_path / "kept.jsonl"))
    summary = write_training_file([kept], tmp_path / "train.jsonl", image_folder=tmp_path)
    assert [(row["id"], row["image"]) for row in read(tmp_path / "train.jsonl")] == [
        ("pmc-vqa-7", "sets/pmc-vqa/figures/b.jpg")
    ]
    assert summary.sources["quilt-1m"].dropped == {"not_a_question": 1}
    assert summary.sources["pmc-vqa"].dropped == {"empty_answer": 1}
    assert summary.examples["empty_answer"] == ["pmc-vqa:8"]


def test_a_record_that_is_left_out_does_not_change_the_order_of_others(tmp_path: Path) -> None:
    questions = [Question("ab"[number % 2], str(number), "x.jpg", "Which?", "yes") for number in range(30)]
    contents = []
    for faulty in ([], [Question("b", "-", "x.jpg", " ", "yes")]):
        save_kept(tmp_path, [*faulty, *questions])
        write_training_file([str(tmp_path / "kept.jsonl")], tmp_path / "train.jsonl", weights={"a": 1.5})
        contents.append((tmp_path / "train.jsonl").read_bytes())
    assert contents[0] == contents[1]


def test_what_the_reader_drops_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "pv"
    make_path_vqa(root, 3)
    path = root / "qas" / "train_vqa.pkl"
    rows = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*rows, {"img_id": "train_0001", "sent": "", "label": {"x": 1}}]))
    summary = write_training_file([f"path-vqa={root}"], tmp_path / "train.jsonl")
    count = summary.sources["path-vqa"]
    assert (count.num_records, count.num_written, sum(count.dropped.values())) == (4, 3, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "8840e0bb7104b1b750a8327651a0869893d188fbaf5668e8aa93f0e7b767e415"),
        (
            {"weights": {"a": 2.5, "b": 0.5}, "seed": 3},
            "866ba202b230c2f0041fda887fa62fb70564a8ec8890575166adcd7afa423a23",
        ),
    ],
)
def test_bytes_are_those_of_the_first_version(tmp_path: Path, options: dict, expected: str) -> None:
    """The hashes were recorded from `data instruct` before it and `tools/dataformat.py` became one function."""
    save_kept(tmp_path, golden_questions())
    write_training_file([str(tmp_path / "kept.jsonl")], tmp_path / "train.jsonl", image_folder=tmp_path, **options)
    assert hashlib.sha256((tmp_path / "train.jsonl").read_bytes()).hexdigest() == expected


def golden_questions() -> list[Question]:
    texts = ["Which <image> stain?", " Größe 🔬 ", "\ud800 odd", " "]
    choices = ("PAS", " Congo red ")
    return [
        Question(
            "ab"[number % 2], str(number), f"{number % 5}.jpg", texts[number % 4], " B ", choices * (number % 3 > 0)
        )
        for number in range(40)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"bach": 1}}, "a weight is given for 'bach'; the sources are path-vqa"),
        ({"weights": {"path-vqa": 0}}, "path-vqa' must be a number above 0"),
        ({"weights": {"path-vqa": float("nan")}}, "path-vqa' must be a number above 0"),
        ({"weights": {"path-vqa": 0.01}}, "no row to write from the 5 records of path-vqa"),
        ({"image_folder": "/nowhere"}, "is outside the image folder '/nowhere'"),
    ],
)
def test_refused(tmp_path: Path, options: dict, message: str) -> None:
    out = tmp_path / "train.jsonl"
    out.write_text("before")
    with pytest.raises(PallavaError, match=message):
        write_training_file([make_path_vqa(tmp_path / "pv", 5)], out, **options)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pv", "train.jsonl"]


def test_same_source_twice_and_unknown_ones(tmp_path: Path) -> None:
    material = make_path_vqa(tmp_path / "pv", 5)
    with pytest.raises(PallavaError, match="given twice"):
        write_training_file([material, material], tmp_path / "train.jsonl")
    for text, message in [
        ("vqa-rad=x", "'vqa-rad'"),
        ("x.jsonl", "'x.jsonl'"),
        (f"bach={tmp_path}", "is not bach"),
    ]:
        with pytest.raises(PallavaError, match=message):
            open_records(text)
    (tmp_path / "kept.jsonl").write_text('{"kind": "captions"}')
    with pytest.raises(PallavaError, match=r"summary\.json"):
        open_records(str(tmp_path / "kept.jsonl"))
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(PallavaError, match=r"summary\.json"):
        open_records(str(tmp_path / "kept.jsonl"))


def test_two_tables_share_columns_and_have_ids_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"file,q,a\n{name}.png,Is it {name}?,yes\n,Lost?,no\n")
    words = ["data", "instruct", str(tmp_path / "train.jsonl"), "--columns", "image=file,question=q,answer=a"]
    tables = ["--source", f"csv={tmp_path}/a.csv", "--source", f"csv={tmp_path}/b.csv"]
    report = tmp_path / "report.json"
    assert main([*words, *tables, "--weights", "csv-2=2", "--report", str(report)]) == 0
    rows = {row["id"]: row["image"] for row in read(tmp_path / "train.jsonl")}
    assert rows == {"csv-0000000": "a.png", "csv-2-0000000": "b.png", "csv-2-0000000-again1": "b.png"}
    counts = json.loads(report.read_text())["sources"]
    assert {name: (each["num_written"], each["dropped"]) for name, each in counts.items()} == {
        "csv": (1, {"empty_name": 1}),
        "csv-2": (2, {"empty_name": 1}),
    }
    assert (
        main([*words, "--source", f"csv={tmp_path}/a.csv", "--source", f"csv={tmp_path}/../{tmp_path.name}/a.csv"]) == 2
    )
    assert "given twice" in capsys.readouterr().err


def test_options_that_questions_do_not_have_are_refused(tmp_path: Path) -> None:
    sources, out = [make_path_vqa(tmp_path / "pv", 5)], tmp_path / "train.jsonl"
    for options in ({"prompts": ["Why?"]}, {"id_prefix": "x-"}, {"max_pixels": 9}, {"decode_images": True}):
        with pytest.raises(PallavaError, match=next(iter(options))):
            write_training_file(sources, out, **options)
    with pytest.raises(PallavaError, match="at least one data set, got none"):
        write_training_file([], out)
    assert not out.exists()
