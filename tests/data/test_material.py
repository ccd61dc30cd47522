"""What a user names on a command line: sources with splits and columns, kept records, training files."""

import argparse
import json
from pathlib import Path

import pytest

from pallava.data.clean import clean
from pallava.data.material import (
    Conversation,
    SourceSpec,
    add_source_options,
    open_records,
    read_columns,
    read_source,
    read_sources,
)
from pallava.data.sources.base import Pair, Question, to_json
from pallava.errors import PallavaError
from tests.tiny.records import caption, save_picture

COLUMNS = {"image": "file", "caption": "text"}


def test_options_become_sources(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    kept = tmp_path / "kept.jsonl"
    kept.touch()
    words = ["--source", "path-vqa=/pv", "--source", "pmc-oa=/oa", "--source", f"{kept}", "--source", "csv=a=b.csv"]
    words += ["--split", "path-vqa=val", "--columns", "image = file,caption=text"]
    options = parser.parse_args(words)
    assert read_sources(options.source, options.split, options.columns, default_split="train") == [
        SourceSpec("path-vqa", "/pv", "val"),
        SourceSpec("pmc-oa", "/oa"),  # has splits in its old release alone
        SourceSpec("", str(kept)),
        SourceSpec("csv", "a=b.csv", None, COLUMNS),
    ]
    assert read_sources(["path-vqa=/pv", "pmc-vqa=/v"], ["test"]) == [
        SourceSpec("path-vqa", "/pv", "test"),
        SourceSpec("pmc-vqa", "/v", "test"),
    ]
    assert read_sources(["pmc-vqa=/v"], default_split="train") == [SourceSpec("pmc-vqa", "/v", "train")]


@pytest.mark.parametrize(
    ("sources", "splits", "columns", "found"),
    [
        (["vqa-rad=x"], [], None, "'vqa-rad'.*path-vqa"),
        (["pmc-oa="], [], None, "'pmc-oa='"),
        (["nowhere.jsonl"], [], None, "nowhere.jsonl"),
        (["pmc-oa=x"], ["quilt-1m=train"], None, "pmc-oa, got 'quilt-1m'"),
        (["pmc-oa=x"], [], "image=a,caption=b", "csv=FILE.*pmc-oa=x"),
    ],
)
def test_wrong_options(sources, splits, columns, found: str) -> None:
    with pytest.raises(PallavaError, match=found):
        read_sources(sources, splits, columns)


@pytest.mark.parametrize("text", ["", "image", "image=", "=a", "image=a,", "image=a,image=b"])
def test_wrong_columns(text: str) -> None:
    with pytest.raises(PallavaError, match="KEY=COLUMN"):
        read_columns(text)


def test_columns_in_python() -> None:
    assert read_columns(COLUMNS) == read_columns("image=file, caption=text") == COLUMNS
    assert read_columns(None) == {}


def test_three_kinds_of_records(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text\na.png,Glands.\n,Stroma.\n")
    records = open_records(read_source(f"csv={tmp_path / 't.csv'}", columns=COLUMNS))
    assert list(records) == [(Pair("csv", "0000000", "a.png", "Glands."), tmp_path.resolve() / "a.png")]
    assert (records.names, records.tally.dropped) == (["csv"], {"empty_name": 1})

    kept, asked = tmp_path / "kept.jsonl", Question("b", "2", "y.jpg", "Is it?", "yes")
    kept.write_text(json.dumps({**to_json(asked), "path": "sub/y.jpg", "scores": {}}) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps({"image_folder": "/data", "sources": {"b": {}}}))
    assert list(open_records(str(kept))) == [(asked, Path("/data/sub/y.jpg"))]
    assert list(open_records(str(kept), image_folder="/mine")) == [(asked, Path("/mine/sub/y.jpg"))]
    kept.write_text("")  # nothing was kept
    assert list(open_records(str(kept))) == []

    train = tmp_path / "train.jsonl"
    talk = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "yes"}]
    rows = [{"image": "x.jpg", "conversations": talk}, "{broken", {"id": 7, "conversations": talk[:1]}]
    train.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    with pytest.raises(PallavaError, match="folder of its images"):
        open_records(str(train))
    records = open_records(str(train), image_folder=tmp_path)
    found = [(row.id, row.images, row.questions, folder) for row, folder in records if isinstance(row, Conversation)]
    assert found == [
        ("line 1", ("x.jpg",), ("<image>\nWhy?",), tmp_path.resolve()),
        ("7", (), ("<image>\nWhy?",), tmp_path.resolve()),
    ]
    assert records.tally.dropped == {"malformed": 1}


def test_a_table_is_cleaned(tmp_path: Path) -> None:
    for folder, seed in (("tables", 0), ("pictures", 1)):
        save_picture(tmp_path / folder / "a.png", seed)
    rows = ["file\ttext", f"a.png\t{caption(0)}", "a.png\tShort.", f"missing.png\t{caption(1)}", f"\t{caption(2)}"]
    (tmp_path / "tables" / "t.tsv").write_text("\n".join(rows))
    for image_folder, image in ((None, "a.png"), (tmp_path, "tables/a.png"), (tmp_path / "pictures", "a.png")):
        summary = clean(
            [f"csv={tmp_path / 'tables' / 't.tsv'}"],
            tmp_path / "out",
            columns="image=file,caption=text",
            image_folder=image_folder and str(image_folder),
            filters=["words", "image"],
        )
        assert json.loads((tmp_path / "out" / "pairs.json").read_text()) == [{"image": image, "caption": caption(0)}]
        assert Path(summary["image_folder"]) == (image_folder or tmp_path / "tables")
        assert summary["sources"]["csv"]["unread"] == {"empty_name": 1}
        dropped = {name: each["dropped"] for name, each in summary["sources"]["csv"]["filters"].items()}
        assert dropped == {"words": {"few_words": 1}, "image": {"missing": 1}}
