"""PathVQA in every form it is passed around in."""

import os
import pickle
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pallava.data.sources import open_source
from pallava.data.sources.base import Question
from pallava.errors import PallavaError
from tests.tiny.trees import read, touch, write_json, write_lines


def write_pickle(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=3))


def asked(number: int, answer: str, answer_type: Any = "other", split: str = "train") -> dict[str, Any]:
    digit = 1 + ("train", "val", "test").index(split)
    return {
        "answer_type": answer_type,
        "img_id": f"{split}_0422",
        "label": {answer: 1},
        "question_id": digit * 10**8 + 422_000 + number,
        "question_type": "where",
        "sent": "Where are liver stem cells (oval cells) located?",
    }


def test_pickles(tmp_path: Path):
    rows = [
        asked(0, "in the canals of hering"),
        asked(1, " yes ", "yes/no"),
        asked(2, "3", "number"),
        asked(2, "an id that comes again"),
        asked(3, "  "),
        asked(4, "x") | {"label": {}},
        asked(5, "x") | {"sent": ""},
        asked(6, "x") | {"img_id": "../../train_0422"},
        asked(7, "x") | {"label": ["x"]},
        {"img_id": "train_0001"},
        None,
        asked(8, "x") | {"question_id": 10**5000},
    ]
    write_pickle(tmp_path / "qas/train_vqa.pkl", rows)
    write_pickle(tmp_path / "qas/val_vqa.pkl", [asked(0, "no", "yes/no", split="val")])
    write_pickle(tmp_path / "qas/train/train_qa.pkl", [])  # the triples lie beside them
    records, dropped = read("path-vqa", tmp_path)
    assert records[0] == Question(
        "path-vqa",
        "100422000",
        "images/train/train_0422.jpg",
        "Where are liver stem cells (oval cells) located?",
        "in the canals of hering",
        (),
        "other",
        {"split": "train", "question_type": "where"},
    )
    assert [(record.id, record.answer, record.answer_type) for record in records[1:]] == [
        ("100422001", "yes", "yes/no"),
        ("100422002", "3", "number"),
        ("100422002~2", "an id that comes again", "other"),
        ("200422000", "no", "yes/no"),
    ]
    assert records[4].image == "images/val/val_0422.jpg"
    assert dropped == {"empty_answer": 2, "empty_question": 1, "outside_folder": 1, "malformed": 4}
    source = open_source("path-vqa", tmp_path)
    list(source)
    assert source.tally.examples["empty_question"] == ["train_vqa.pkl, row 7: the question is empty"]


def test_lists_that_hold_each_other_are_not_written_out(tmp_path: Path):
    """As text they would grow with every level to twice the size; in a pickle each level takes some bytes."""
    shared: list[Any] = []
    for _ in range(18):
        shared = [shared, shared]
    write_pickle(tmp_path / "qas/train_vqa.pkl", [asked(0, "yes", shared), asked(1, "x") | {"sent": shared}])
    tracemalloc.start()
    records, dropped = read("path-vqa", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.answer_type for record in records] == ["yes/no"]
    assert dropped == {"malformed": 1}
    assert peak < 500_000


def test_splits(tmp_path: Path):
    for split in ("train", "val", "test"):
        write_pickle(tmp_path / f"qas/{split}_vqa.pkl", [asked(0, "x", split=split)])
    assert [record.id for record in read("path-vqa", tmp_path)[0]] == ["100422000", "200422000", "300422000"]
    for name in ("val", "valid", "validation"):
        assert [record.id for record in read("path-vqa", tmp_path, split=name)[0]] == ["200422000"]
    with pytest.raises(PallavaError, match="'dev'.*train, val, test"):
        open_source("path-vqa", tmp_path, split="dev")


@pytest.mark.parametrize("folder", ["images/test/", "images/", "images/images/test/", "test/", ""])
def test_image_layouts(tmp_path: Path, folder: str):
    write_pickle(tmp_path / "qas/test_vqa.pkl", [asked(0, "x", split="test")])
    touch(tmp_path, f"{folder}test_0422.jpg")
    assert [record.image for record in read("path-vqa", tmp_path)[0]] == [f"{folder}test_0422.jpg"]


def test_triples(tmp_path: Path):
    rows = [
        {"image": "test_0273", "question": "Is it?", "answer": "Yes"},
        {"image": "test_0273", "question": "What?", "answer": "skin"},
    ]
    write_pickle(tmp_path / "qas/test/test_qa.pkl", rows)
    records, _ = read("path-vqa", tmp_path)
    assert records[0] == Question(
        "path-vqa", "test-000000", "images/test/test_0273.jpg", "Is it?", "Yes", (), "yes/no", {"split": "test"}
    )
    assert records[1].answer_type == "other"


def test_a_pickle_of_something_else(tmp_path: Path):
    write_pickle(tmp_path / "qas/test_vqa.pkl", {"a": 1})
    with pytest.raises(PallavaError, match="got a dict"):
        list(open_source("path-vqa", tmp_path))


def picture(color: str, kind: str = "JPEG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), color).save(file, kind)
    return file.getvalue()


def test_parquet(tmp_path: Path, caplog):
    images = [picture("red"), picture("red"), picture("blue", "PNG"), None]
    table = {
        "image": [{"bytes": image, "path": None} for image in images],
        "question": ["is it?", "what?", "what?", "what?"],
        "answer": ["yes", "skin", "bone", "x"],
    }
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.table(table), tmp_path / "data/train-00000-of-00001-ab.parquet")
    table["question"] = ["in the validation split?", "b", "c", "d"]
    parquet.write_table(pa.table(table), tmp_path / "data/validation-00000-of-00001-ab.parquet")
    records, dropped = read("path-vqa", tmp_path)
    assert dropped == {"malformed": 2}
    assert [record.id for record in records] == [f"{split}-00000{i}" for split in ("train", "val") for i in range(3)]
    assert [record.answer_type for record in records[:3]] == ["yes/no", "other", "other"]
    assert records[0].image == records[1].image
    assert records[0].image.startswith("images/train/")
    for record, image in zip(records[:3], images, strict=False):
        assert (tmp_path / record.image).read_bytes() == image
        assert (tmp_path / record.image).stat().st_mtime == 0
    assert records[2].image.endswith(".png")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["train", "val"]
    assert len(list((tmp_path / "images/train").iterdir())) == 2
    assert str(tmp_path / "images/train") in caplog.text
    os.utime(tmp_path / records[0].image, (1, 1))
    assert list(open_source("path-vqa", tmp_path)) == records
    assert (tmp_path / records[0].image).stat().st_mtime == 1  # it is not written again


def test_damaged_parquet(tmp_path: Path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(PallavaError, match="parquet"):
        list(open_source("path-vqa", tmp_path))


def test_published_json(tmp_path: Path):
    row = {
        "question": "Where?",
        "image": "test_0273",
        "answer": " skin ",
        "question_type": "where",
        "answer_type": "other",
    }
    write_json(
        tmp_path / "path_vqa_test.json", {"300273000": row, "300273001": None, "300273002": row | {"answer": ""}}
    )
    records, dropped = read("path-vqa", tmp_path, split="test")
    metadata = {"split": "test", "question_type": "where"}
    image = "images/test/test_0273.jpg"
    assert records == [Question("path-vqa", "300273000", image, "Where?", "skin", (), "other", metadata)]
    assert dropped == {"malformed": 1, "empty_answer": 1}


def test_damaged_json(tmp_path: Path):
    row = {"question": "Where?", "image": "test_0273", "answer": "skin"}
    write_json(tmp_path / "test.json", {"1": row, "2": row})
    content = (tmp_path / "test.json").read_bytes()
    (tmp_path / "test.json").write_bytes(content[:-20])
    with pytest.raises(PallavaError, match="neither one JSON object nor JSONL"):
        list(open_source("path-vqa", tmp_path))


def test_list_of_m2i2(tmp_path: Path):
    row = {"qid": 7, "image_name": "test/test_0001.jpg", "question": "Is it?", "answer": "no"}
    row |= {"answer_type": "yes/no", "question_type": "is"}
    write_json(tmp_path / "test.json", [row])
    records, _ = read("path-vqa", tmp_path)
    assert [(record.id, record.image, record.answer_type) for record in records] == [
        ("7", "images/test/test_0001.jpg", "yes/no")
    ]


@pytest.mark.parametrize("key", ["conversations", "conversatons"])
@pytest.mark.parametrize("is_list", [True, False])
def test_conversations_of_llava_med(tmp_path: Path, key: str, is_list: bool):
    turns = [{"from": "human", "value": "Is it?\n<image>"}, {"from": "gpt", "value": "no"}]
    rows = [
        {"id": "a", "image": "train_0001.jpg", "answer_type": "CLOSED", key: turns},
        {"id": "b", "image": "train_0001.jpg", "answer_type": "OPEN", key: turns * 2},
        {"id": "c", "image": "train_0001.jpg", "answer_type": "OPEN", key: turns[:1]},
    ]
    if is_list:
        write_json(tmp_path / "train.json", rows)
    else:
        write_lines(tmp_path / "train.jsonl", rows)
    records, dropped = read("path-vqa", tmp_path, image_policy="each")
    assert [(record.id, record.answer_type) for record in records] == [
        ("a", "yes/no"),
        ("b-0", "other"),
        ("b-1", "other"),
    ]
    assert {record.question for record in records} == {"Is it?"}
    assert dropped == {"malformed": 1}
