"""PMC-VQA: both versions, both layouts of each, labels that need repair, cells that are not missing values."""

from pathlib import Path
from typing import Any

import pytest

from pallava.data.sources import open_source
from pallava.data.sources.base import Question
from pallava.errors import PallavaError
from tests.tiny.trees import read, touch, write_csv, write_json

VERSION_1 = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]
VERSION_2 = [
    "index",
    "Figure_path",
    "Caption",
    "Question",
    "Choice A",
    "Choice B",
    "Choice C",
    "Choice D",
    "Answer",
    "split",
]
CHOICES = [" A:CT ", " B: MRI", "\u00a0C:\u200aX-ray\u00a0", "\u200bD:PET\ufeff "]
OPTIONS = ("CT", "MRI", "X-ray", "PET")


def row_1(answer: str = "CT", label: str = "A", choices: list[str] = CHOICES, question: str = " Which? ") -> list[str]:
    return ["PMC1_F1.jpg", question, f" {answer}", *choices, label]


def row_2(answer: str = "A", choices: list[str] = CHOICES) -> list[Any]:
    return [0, "PMC2_F1.jpg", "A caption.", "Which?", *choices, answer, "train"]


def answers(root: Path, header: list[str], rows: list[list[Any]]) -> tuple[list[str], dict[str, int]]:
    write_csv(root / ("train.csv" if header[0] == VERSION_1[0] else "train_2.csv"), header, rows)
    records, dropped = read("pmc-vqa", root)
    return [record.answer for record in records], dropped


def test_version_1(tmp_path: Path):
    write_csv(tmp_path / "train.csv", VERSION_1, [row_1()])
    expected = Question(
        "pmc-vqa", "train-000000", "images/PMC1_F1.jpg", "Which?", "A", OPTIONS, "choice", {"split": "train"}
    )
    assert read("pmc-vqa", tmp_path) == ([expected], {})


def test_version_2(tmp_path: Path):
    write_csv(tmp_path / "test_2.csv", VERSION_2, [row_2("D")])
    expected = Question(
        "pmc-vqa", "test_2-000000", "figures/PMC2_F1.jpg", "Which?", "D", OPTIONS, "choice", {"split": "test_2"}
    )
    assert read("pmc-vqa", tmp_path) == ([expected], {})


@pytest.mark.parametrize("folder", ["images/", "images/images/", "figures/", "figures/figures/", ""])
def test_layouts(tmp_path: Path, folder: str):
    for version, (name, header, row) in enumerate([("train", VERSION_1, row_1()), ("train_2", VERSION_2, row_2())], 1):
        root = tmp_path / str(version)
        write_csv(root / f"{name}.csv", header, [row])
        touch(root, f"{folder}PMC{version}_F1.jpg")
        assert [record.image for record in read("pmc-vqa", root)[0]] == [f"{folder}PMC{version}_F1.jpg"]


def test_both_versions_and_splits(tmp_path: Path):
    for split in ("train", "test", "test_clean"):
        write_csv(tmp_path / f"{split}.csv", VERSION_1, [row_1()])
    for split in ("train_2", "test_2"):
        write_csv(tmp_path / f"{split}.csv", VERSION_2, [row_2()])
    touch(tmp_path, "images/PMC1_F1.jpg", "figures/PMC2_F1.jpg")
    assert [record.id for record in read("pmc-vqa", tmp_path)[0]] == ["train-000000", "test-000000"]
    for split, image in {"test_clean": "images/PMC1_F1.jpg", "test_2": "figures/PMC2_F1.jpg"}.items():
        assert [record.image for record in read("pmc-vqa", tmp_path, split=split)[0]] == [image]
    with pytest.raises(PallavaError, match="'val'.*train, test, test_clean, train_2, test_2"):
        open_source("pmc-vqa", tmp_path, split="val")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").unlink()
    assert [record.id for record in read("pmc-vqa", tmp_path)[0]] == ["test_clean-000000"]


def test_version_2_in_the_other_spelling(tmp_path: Path):
    write_csv(tmp_path / "train2.csv", VERSION_2, [row_2("D")])
    assert [record.id for record in read("pmc-vqa", tmp_path, split="train2")[0]] == ["train2-000000"]


def test_old_header_and_cells_that_are_text(tmp_path: Path):
    header = [name.replace("Answer", "Anwser") if name == "Answer" else f" {name} " for name in VERSION_1]
    choices = ["A:N/A", "B:None", "C:nan", "D:NULL"]
    rows = [row_1("None", '"', choices), row_1("N/A", "", choices), row_1("NULL", "D", choices)]
    write_csv(tmp_path / "train.csv", header, rows)
    records, dropped = read("pmc-vqa", tmp_path)
    assert [record.answer for record in records] == ["B", "A", "D"]
    assert records[0].options == ("N/A", "None", "nan", "NULL")
    assert not dropped


def test_one_prefix_is_dropped(tmp_path: Path):
    write_csv(tmp_path / "train.csv", VERSION_1, [row_1(choices=["A: B: cells", "T cells", "C : c", "E:e"])])
    assert read("pmc-vqa", tmp_path)[0][0].options == ("B: cells", "T cells", "c", "E:e")


def test_bad_labels(tmp_path: Path):
    rows = [row_1("MRI", '"'), row_1("MRI", "E"), row_1("A:CT", ""), row_1("ultrasound", '"')]
    assert answers(tmp_path, VERSION_1, rows) == (["B", "B", "A"], {"bad_label": 1})


def test_repeated_letters(tmp_path: Path):
    twice = ["A:CT", "B:MRI", "B:X-ray", "D:PET"]
    same = ["A:CT", "B:MRI", "C:MRI", "D:PET"]
    rows = [
        row_1("X-ray", "B", twice),  # B names two: the answer's text tells
        row_1("PET", "D", twice),  # D names one
        row_1("X-ray", "C", twice),  # no choice has this letter
        row_1("scan", "B", twice),
        row_1("MRI", "", same),  # two choices equal the answer
        row_1("MRI", "C", same),  # the label tells
    ]
    assert answers(tmp_path, VERSION_1, rows) == (["C", "D", "C", "C"], {"bad_label": 2})
    assert answers(tmp_path / "2", VERSION_2, [row_2("B", twice), row_2("D", twice)]) == (["D"], {"bad_label": 1})


def test_rows_that_are_dropped(tmp_path: Path):
    rows = [
        row_1(question="\u200a"),
        row_1(choices=["A:CT", "B: ", "C:X", "D:Y"]),
        row_1()[:-1],
        ["../a.jpg", *row_1()[1:]],
        ["", *row_1()[1:]],
    ]
    expected = {"empty_question": 1, "empty_choice": 1, "malformed": 2, "outside_folder": 1}
    assert answers(tmp_path, VERSION_1, rows) == ([], expected)


def test_a_table_without_choices(tmp_path: Path):
    write_csv(tmp_path / "train.csv", VERSION_1[:4], [])
    with pytest.raises(PallavaError, match="'choice b'"):
        list(open_source("pmc-vqa", tmp_path))


def test_published_evaluation_file(tmp_path: Path):
    row = {"question": "Which? A:CT B:MRI C:X-ray D:PET", "image": "PMC1_F1.jpg", "answer": "B"}
    write_json(
        tmp_path / "pmcvqa_test.json",
        {"7": row, "8": row | {"answer": "CT"}, "9": 1, "10": {"question": "", "image": ""}},
    )
    touch(tmp_path, "images/images/PMC1_F1.jpg")
    metadata = {"split": "pmcvqa_test", "options_in_question": True}
    image = "images/images/PMC1_F1.jpg"
    expected = Question("pmc-vqa", "7", image, row["question"], "B", (), "choice", metadata)
    assert read("pmc-vqa", tmp_path) == ([expected], {"bad_label": 1, "malformed": 2})
    write_csv(tmp_path / "train.csv", VERSION_1, [row_1()])
    assert [record.id for record in read("pmc-vqa", tmp_path)[0]] == ["train-000000"]
    assert [record.id for record in read("pmc-vqa", tmp_path, split="pmcvqa_test")[0]] == ["7"]
