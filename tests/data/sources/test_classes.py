"""BACH, OSCC and ColonPath: folders, names and lists that carry the label."""

from pathlib import Path

import pytest

from pallava.data.sources import open_source
from pallava.data.sources.base import Labelled
from pallava.errors import PallavaError
from tests.tiny.trees import read, touch, write_csv


@pytest.mark.parametrize("folder", ["Photos/", ""])
def test_bach(tmp_path: Path, folder: str):
    names = ["Normal/n001.tif", "Benign/b001.tif", "InSitu/is001.tif", "Invasive/iv099.tif", "Invasive/iv100.tif"]
    touch(tmp_path, *(folder + name for name in names))
    junk = ["Normal/Thumbs.db", "Normal/._n001.tif", "Normal/n1.tif", "Benign/b002.TIF.txt"]
    touch(tmp_path, *(folder + name for name in junk))
    table = tmp_path / f"{folder}microscopy_ground_truth.csv"
    table.write_text("n001.tif,Normal\r\nb001.tif,Benign\r\niv100.tif,InSitu\r\nn400.tif,Normal\r\n")
    records, dropped = read("bach", tmp_path)
    assert records[0] == Labelled("bach", "n001", f"{folder}Normal/n001.tif", "Normal", {"index": 0})
    assert [(record.id, record.label) for record in records][1:] == [
        ("b001", "Benign"),
        ("is001", "InSitu"),
        ("iv099", "Invasive"),
    ]
    assert dropped == {"unexpected_name": 4, "label_conflict": 1}


def test_bach_without_its_table(tmp_path: Path):
    touch(tmp_path, "Photos/Normal/n001.tif")
    assert read("bach", tmp_path)[1] == {}


def test_oscc(tmp_path: Path):
    first, second = "First Set/100x", "Second Set/400x"
    normal, cancer = "Normal Oral Cavity Histopathological Images", "OSCC Histopathological Images"
    touch(
        tmp_path,
        f"{first} {normal}/Normal_100x_1.jpg",
        f"{first} {cancer}/OSCC_100x_1.JPG",
        f"{second} {normal}/Normal_400x_1.jpeg",
        f"{second} {cancer}/OSCC_400x_2.jpg",
        f"{second} {cancer}/Normal_400x_2.jpg",
        f"{second} {cancer}/notes.txt",
        f"__MACOSX/{first} {cancer}/._OSCC_100x_1.jpg",
        f"__MACOSX/{first} {cancer}/OSCC_100x_1.jpg",
        "Second Set.zip",
    )
    records, dropped = read("oscc", tmp_path)
    assert [(record.image, record.label, record.metadata) for record in records] == [
        (f"{first} {normal}/Normal_100x_1.jpg", "normal oral epithelium", {"index": 0, "magnification": 100}),
        (f"{first} {cancer}/OSCC_100x_1.JPG", "oral squamous cell carcinoma", {"index": 1, "magnification": 100}),
        (f"{second} {normal}/Normal_400x_1.jpeg", "normal oral epithelium", {"index": 0, "magnification": 400}),
        (f"{second} {cancer}/OSCC_400x_2.jpg", "oral squamous cell carcinoma", {"index": 1, "magnification": 400}),
    ]
    assert dropped == {"label_conflict": 1, "unexpected_name": 1, "packed": 1}


def test_oscc_still_packed(tmp_path: Path):
    touch(tmp_path, "First Set.zip", "Second Set.zip")
    with pytest.raises(PallavaError, match="pallava data unpack First Set.zip"):
        open_source("oscc", tmp_path)


@pytest.mark.parametrize("folder", ["colon/images/", "colon/image/", "images/", "colon/"])
def test_colonpath_table(tmp_path: Path, folder: str):
    rows = [[0, "2019-1 1.png", 1], [1, "2019-1 2.png", 0], [2, "", 0], [3, "2019-1 3", "1.0"], [4, "a.png", "?"], [5]]
    write_csv(tmp_path / "colon_train.csv", ["", "img_id", "tumor"], rows)
    touch(tmp_path, f"{folder}2019-1 2.png")
    records, dropped = read("colonpath", tmp_path)
    metadata = {"index": 1, "split": "train"}
    assert records[0] == Labelled("colonpath", "train-00000", f"{folder}2019-1 1.png", "tumor", metadata)
    assert [(record.image.removeprefix(folder), record.label) for record in records] == [
        ("2019-1 1.png", "tumor"),
        ("2019-1 2.png", "normal"),
        ("2019-1 3.png", "tumor"),
    ]
    assert dropped == {"empty_name": 1, "bad_label": 1, "malformed": 1}


def test_colonpath_lists(tmp_path: Path):
    (tmp_path / "colon").mkdir()
    (tmp_path / "colon/train_20.txt").write_text("2019-1 1.png 1\n\n2019-1 2.png 0\r\n2019-1 3.png\n 1\n")
    records, dropped = read("colonpath", tmp_path)
    assert [(record.image, record.label) for record in records] == [
        ("colon/2019-1 1.png", "tumor"),
        ("colon/2019-1 2.png", "normal"),
    ]
    assert dropped == {"bad_label": 1, "empty_name": 1}
    touch(tmp_path, "colon/train_40.txt", "colon/images/2019-1 1.png")
    with pytest.raises(PallavaError, match="train_20, train_40"):
        open_source("colonpath", tmp_path)
    assert read("colonpath", tmp_path, split="train_20")[0][0].image == "colon/images/2019-1 1.png"


def test_colonpath_without_labels(tmp_path: Path):
    write_csv(tmp_path / "colon_train.csv", ["", "img_id", "tumor"], [[0, "a.png", 1]])
    write_csv(tmp_path / "colon_val.csv", ["", "img_id"], [[0, "a.png"]])
    with pytest.raises(PallavaError, match="train, val"):
        open_source("colonpath", tmp_path)
    assert len(read("colonpath", tmp_path, split="train")[0]) == 1
    assert read("colonpath", tmp_path, split="val") == ([], {"bad_label": 1})
