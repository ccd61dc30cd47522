"""What all readers share: records as JSON, paths that stay inside, counts, errors."""

import inspect
import json
import re
from pathlib import Path

import pytest

from pallava.data.sources import SOURCES, files, open_source
from pallava.data.sources.base import KINDS, Labelled, Pair, Question, Record, Tally, record_from_json, to_json
from pallava.data.sources.files import RowDropped, inner_path
from pallava.errors import PallavaError
from pallava.evaluation.class_sets import known_sets
from tests.tiny.trees import read, touch, write_json

RECORDS: list[Record] = [
    Pair("pairs", "0", "a/b.png", "Glands é", {"modality": "x"}),
    Question("pmc-vqa", "1", "a.jpg", "What?", "B", ("x", "y"), "choice"),
    Labelled("bach", "n001", "Photos/Normal/n001.tif", "Normal", {"index": 0}),
]


@pytest.mark.parametrize("record", RECORDS)
def test_records_go_through_json(record: Record):
    value = json.loads(json.dumps(to_json(record)))
    assert KINDS[value["kind"]] is type(record)
    assert record_from_json(value) == record


@pytest.mark.parametrize("value", [{}, [], {"kind": "films"}, {"kind": "captions", "id": "0"}])
def test_other_json_is_no_record(value):
    with pytest.raises(PallavaError, match="not a record"):
        record_from_json(value)


@pytest.mark.parametrize("image", ["/etc/passwd", "../a.png", "a/../../b.png", "a/../b.png", ".."])
def test_paths_that_leave(image: str):
    with pytest.raises(RowDropped) as dropped:
        inner_path(image)
    assert dropped.value.reason == "outside_folder"


@pytest.mark.parametrize("image", ["", ".", "./", "a\0b.png", "\ud800.png"])
def test_paths_that_are_no_names(image: str):
    with pytest.raises(RowDropped) as dropped:
        inner_path(image)
    assert dropped.value.reason == "malformed"


def test_paths_in_their_simplest_form():
    assert inner_path("./a//b..c.png") == "a/b..c.png"


def test_tally_keeps_three_examples():
    tally = Tally()
    for number in range(5):
        tally.drop("malformed", f"line {number}")
    tally.drop("empty_caption", "line 9")
    assert tally.dropped == {"malformed": 5, "empty_caption": 1}
    assert tally.examples["malformed"] == ["line 0", "line 1", "line 2"]


def test_every_kind_has_a_source():
    assert {source.kind for source in SOURCES.values()} == set(KINDS)


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_that_is_not_the_set(name: str, tmp_path: Path):
    with pytest.raises(PallavaError, match="nowhere' does not exist"):
        open_source(name, tmp_path / "nowhere")
    touch(tmp_path, "notes.md", "downloads/a", "images.zip")
    with pytest.raises(PallavaError) as error:
        open_source(name, tmp_path)
    for part in (
        str(tmp_path),
        name,
        SOURCES[name].layout,
        "downloads/, images.zip, notes.md",
        "data unpack images.zip",
    ):
        assert part in str(error.value)


def test_unknown_name_and_policy(tmp_path: Path):
    with pytest.raises(PallavaError, match=", ".join(SOURCES)):
        open_source("imagenet", tmp_path)
    write_json(tmp_path / "pairs.json", [])
    with pytest.raises(PallavaError, match="first, each, single-only"):
        open_source("pairs", tmp_path, image_policy="all")


def test_pairs_in_a_folder_and_as_a_file(tmp_path: Path):
    rows = [
        {"image": "x/a.png", "caption": " Glands. "},
        {"image": "../a.png", "caption": "Outside."},
        {"image": "/etc/a.png", "caption": "Outside."},
        {"image": "b.png", "caption": " \n"},
        {"image": "b.png", "caption": None},
        {"image": ["b.png"], "caption": "A list."},
        {"caption": "No image."},
        "text",
        {"image": "b.png", "caption": "half \ud800 of a pair"},
        {"image": "b.png", "caption": float("nan")},
        {"image": "b.png", "caption": "nan"},
        {"image": "b" * 5000, "caption": "A name longer than files have."},
    ]
    write_json(tmp_path / "pairs.json", rows)
    records, dropped = read("pairs", tmp_path)
    assert records == [
        Pair("pairs", "0000000", "x/a.png", "Glands."),
        Pair("pairs", "0000011", "b" * 5000, "A name longer than files have."),
    ]
    assert dropped == {"outside_folder": 2, "empty_caption": 4, "malformed": 4}
    assert read("pairs", tmp_path / "pairs.json") == (records, dropped)
    source = open_source("pairs", tmp_path)
    list(source)
    assert source.tally.examples["outside_folder"][0] == (
        "pairs.json, record 2 (line 1, column 48): '../a.png' leaves the image folder"
    )


def test_pairs_of_several_files(tmp_path: Path):
    for name in ("one", "two"):
        write_json(tmp_path / f"{name}.json", [{"image": f"{name}.png", "caption": "Glands."}])
    with pytest.raises(PallavaError, match=r"one\.json, two\.json"):
        open_source("pairs", tmp_path)
    assert read("pairs", tmp_path, split="two")[0][0].image == "two.png"
    assert read("pairs", tmp_path / "one.json")[0][0].image == "one.png"
    with pytest.raises(PallavaError, match="'three'.*one, two"):
        open_source("pairs", tmp_path, split="three")


def test_a_damaged_list_says_where(tmp_path: Path):
    (tmp_path / "pairs.json").write_text('[{"image": "a.png", "caption": "Glands."}, {"image": }]')
    with pytest.raises(PallavaError, match="record 2"):
        list(open_source("pairs", tmp_path))


def test_the_documents_hold_the_sets_and_their_reasons():
    text = (Path(__file__).parents[3] / "docs" / "data_sets.md").read_text(encoding="utf-8")
    documented = re.findall(r"^### .*: `([\w-]+)`$", text, re.MULTILINE)
    assert len(documented) == len(set(documented)) > 8
    assert not set(documented) - set(SOURCES) - set(known_sets())  # some sets are for evaluation alone
    modules = {inspect.getmodule(SOURCES[name]) for name in documented if name in SOURCES} | {files}
    code = "".join(inspect.getsource(module) for module in modules if module)
    reasons = set(re.findall(r'RowDropped\(\s*"(\w+)"', code))
    assert len(reasons) > 10
    assert not {reason for reason in reasons if f"`{reason}`" not in text}
