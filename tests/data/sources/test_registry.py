"""A new data set is one file: a reader found by itself in the package, or registered by a user's own module."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from pallava.data import sources
from pallava.data.sources import SOURCES, Source, open_source, register_source
from pallava.data.sources.base import Pair
from pallava.errors import PallavaError
from tests.tiny.trees import read, write_json

NEWCOMER = re.search(
    "```python\n(.*?)```", (Path(__file__).parents[3] / "docs" / "data_sets.md").read_text(encoding="utf-8"), re.DOTALL
)[1]  # type: ignore[index]


@pytest.fixture
def registry(monkeypatch):
    """Leaves the registry as it was."""
    before = dict(SOURCES)
    yield
    SOURCES.clear()
    SOURCES.update(before)
    for name in ("atlas_of_mine", "pallava.data.sources.atlas"):
        sys.modules.pop(name, None)


def check_atlas(root: Path) -> None:
    rows = [{"plate": "1.png", "legend": " Glands. "}, {"plate": "2.png", "legend": ""}, {"plate": "2.png"}]
    write_json(root / "atlas.json", rows)
    assert read("atlas", root) == (
        [Pair("atlas", "00000", "plates/1.png", "Glands.")],
        {"empty_legend": 1, "malformed": 1},
    )
    with pytest.raises(PallavaError, match=r"atlas\.json"):
        open_source("atlas", root / "..")


def test_a_file_in_the_package_is_found_by_itself(tmp_path: Path, monkeypatch, registry):
    assert NEWCOMER.count("\n") <= 35
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "atlas.py").write_text(NEWCOMER)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "code")])
    sources.import_readers()
    check_atlas(tmp_path / "set")


def test_a_module_of_the_users_own_registers_itself(tmp_path: Path, monkeypatch, registry):
    (tmp_path / "atlas_of_mine.py").write_text(NEWCOMER)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PallavaError, match="atlas"):
        open_source("atlas", tmp_path)
    importlib.import_module("atlas_of_mine")
    check_atlas(tmp_path / "set")


def test_a_name_is_taken_once(registry):
    @register_source
    class Mine(Source):
        name, kind = "mine", "captions"

    assert register_source(Mine) is Mine  # a module that is read again
    with pytest.raises(PallavaError, match="pairs.*taken"):
        register_source(type("Other", (Source,), {"name": "pairs", "kind": "captions"}))
    for attributes in ({}, {"name": "mine"}, {"name": "a=b", "kind": "captions"}, {"name": "b", "kind": "films"}):
        with pytest.raises(PallavaError, match="must have a name"):
            register_source(type("Other", (Source,), attributes))


def write_table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


CAPTIONS = {"image": "File", "caption": "text"}
QUESTIONS = {"image": "file", "question": "q", "answer": "a"}


@pytest.mark.parametrize(("name", "delimiter"), [("mine.csv", ","), ("mine.tsv", "\t")])
def test_a_table_of_captions(tmp_path: Path, name: str, delimiter: str):
    lines = ["file,TEXT,more", "a.png, Glands. ,1", "b.png,,2", ",Stroma.,3", "../c.png,Stroma.,4", "d.png,Stroma."]
    table = write_table(tmp_path / "set" / name, "\n".join(lines).replace(",", delimiter))
    expected = [Pair("csv", "0000000", "a.png", "Glands.")]
    dropped = {"empty_caption": 1, "empty_name": 1, "outside_folder": 1, "malformed": 1}
    assert read("csv", table, columns=CAPTIONS) == (expected, dropped)
    assert read("csv", tmp_path / "set", columns=CAPTIONS) == (expected, dropped)
    source = open_source("csv", table, columns=CAPTIONS)
    list(source)
    assert source.tally.examples["empty_name"][0].startswith(f"{name}, line 4")


def test_a_table_of_questions(tmp_path: Path):
    table = write_table(
        tmp_path / "q.csv", 'file,q,a\na.png,"Is it, then?",Yes\na.png,What?,skin\na.png,,x\na.png,Why?,\n'
    )
    source = open_source("csv", table, columns=QUESTIONS)
    assert source.kind == "questions"
    assert [(each.question, each.answer, each.answer_type) for each in source] == [
        ("Is it, then?", "Yes", "yes/no"),
        ("What?", "skin", "other"),
    ]
    assert source.tally.dropped == {"empty_question": 1, "empty_answer": 1}


def test_images_beside_the_table_or_in_the_image_folder(tmp_path: Path):
    table = write_table(tmp_path / "tables" / "t.csv", "file,text\na.png,Glands.\n")

    def image_of(**options) -> Path:
        source = open_source("csv", table, columns=CAPTIONS, **options)
        return source.root / next(iter(source)).image

    def touch(name: str) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        return tmp_path / name

    assert image_of() == tmp_path / "tables" / "a.png"
    assert image_of(image_folder=tmp_path / "pictures") == tmp_path / "pictures" / "a.png"
    elsewhere = touch("a.png")
    assert image_of() != elsewhere == image_of(image_folder=tmp_path)
    beside = touch("tables/a.png")
    assert image_of() == beside == image_of(image_folder=tmp_path)  # a folder that holds several sets


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": "path", "caption": "text"}, "'path'.*file, text"),
        ({"image": "file"}, "image=file"),
        ({"image": "file", "caption": "text", "answer": "text"}, "answer=text"),
        (None, "--columns"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, columns, found: str):
    table = write_table(tmp_path / "t.csv", "file,text\na.png,Glands.\n")
    with pytest.raises(PallavaError, match=found):
        open_source("csv", table, columns=columns)
    (tmp_path / "pairs.json").write_text(json.dumps([]))
    with pytest.raises(PallavaError, match="pairs has columns of its own"):
        open_source("pairs", tmp_path, columns=CAPTIONS)


@pytest.mark.parametrize("name", ["own.CSV", "own.txt"])
def test_a_table_whatever_its_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("file,text\na.png,A gland.\n")
    (tmp_path / "a.png").touch()
    source = open_source("csv", tmp_path / name, columns=CAPTIONS)
    assert [record.text for record in source] == ["A gland."]
    with pytest.raises(PallavaError, match="missing"):
        open_source("csv", tmp_path / name, columns={**CAPTIONS, "caption": "missing"})


def test_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"file": "a.png"}\n')
    with pytest.raises(PallavaError, match=r"own\.jsonl"):
        open_source("csv", tmp_path / "own.jsonl", columns=CAPTIONS)
