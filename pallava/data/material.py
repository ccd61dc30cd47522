"""Data that a user names: a data set as NAME=ROOT, the kept.jsonl of `pallava data clean`, or a training file."""

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pallava.data.sources import SOURCES, Source, open_source
from pallava.data.sources.base import KINDS, Record, Tally, record_from_json
from pallava.data.sources.files import RowDropped, as_object, json_rows
from pallava.data.training_row import is_file_name
from pallava.errors import PallavaError
from pallava.io.records import RecordFile

SUMMARY_NAME = "summary.json"  # which cleaning writes beside the kept records
COLUMNS_HELP = "columns of csv=FILE: image=COLUMN,caption=COLUMN or image=COLUMN,question=COLUMN,answer=COLUMN"


@dataclass(frozen=True)
class SourceSpec:
    """A data set as a user names it."""

    name: str  # of the source; empty for a kept.jsonl or a training file
    root: str
    split: str | None = None  # None for the default of the set
    columns: Mapping[str, str] = field(default_factory=dict)  # such as {"image": "file", "caption": "text"}

    def __str__(self) -> str:
        return f"{self.name}={self.root}" if self.name else self.root

    def open(self, **options: Any) -> Source:
        """Open the source with further options of `open_source`."""
        return open_source(self.name, self.root, split=self.split, columns=self.columns, **options)


def add_source_options(
    parser: argparse.ArgumentParser, *, kinds: Collection[str] = tuple(KINDS), also: str = "", default_split: str = ""
) -> None:
    """Add ``--source``, ``--split`` and ``--columns``, which `read_sources` reads.

    The help texts name the sources of some `kinds`, other data that the option takes (`also`), and the default split.
    """
    names = ", ".join(name for name, source in SOURCES.items() if source.kind in kinds or source.takes_columns)
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="NAME=ROOT",
        help=f"data set and its folder or file{also} (repeatable); NAME is one of {names}",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="[NAME=]SPLIT",
        help="split to read, of all data sets or of one, such as pmc-vqa=train_2 (repeatable)"
        + (f" (default: {default_split})" if default_split else ""),
    )
    parser.add_argument("--columns", metavar="KEY=COLUMN,...", help=COLUMNS_HELP)


def read_columns(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the value of ``--columns``, or columns given in Python, as a dictionary.

    Raises:
        PallavaError: A part of the text is not KEY=COLUMN.
    """
    if not isinstance(given, str):
        return dict(given or {})
    columns: dict[str, str] = {}
    for part in given.split(","):
        key, _, column = map(str.strip, part.partition("="))
        if not (key and column) or key in columns:
            raise PallavaError(f"--columns must be KEY=COLUMN,... with each key once, got {part!r} in {given!r}")
        columns[key] = column
    return columns


def check_columns(columns: Mapping[str, str], sources: Sequence[str]) -> None:
    """Refuse columns if none of the sources, given as NAME=ROOT or a path, takes any."""
    names = [text.partition("=")[0] for text in sources]
    if columns and not any(name in SOURCES and SOURCES[name].takes_columns for name in names):
        raise PallavaError(f"--columns is for csv=FILE, got the sources {', '.join(sources)}")


def read_sources(
    sources: Sequence[str],
    splits: Sequence[str] = (),
    columns: str | Mapping[str, str] | None = None,
    *,
    default_split: str | None = None,
) -> list[SourceSpec]:
    """Return the data sets that the values of ``--source``, ``--split`` and ``--columns`` name.

    The sets that always have the default split are read in it, unless ``--split`` names another.

    Raises:
        PallavaError: A value does not name a source or file, or ``--split`` or ``--columns`` has no source to apply to.
    """
    names, split_of = [text.partition("=")[0] for text in sources], dict[str, str]()
    for text in splits:
        name, equals, split = text.rpartition("=")
        if equals and name not in names:
            raise PallavaError(f"--split {text} must name one of the sources {', '.join(names)}, got {name!r}")
        split_of |= {name: split} if equals else dict.fromkeys(names, split)
    given = read_columns(columns)
    check_columns(given, sources)
    return [
        read_source(text, split=split_of.get(name), columns=given, default_split=default_split)
        for text, name in zip(sources, names, strict=True)
    ]


def read_source(
    text: str,
    *,
    split: str | None = None,
    columns: str | Mapping[str, str] | None = None,
    default_split: str | None = None,
) -> SourceSpec:
    """Return the data set that one value, NAME=ROOT or the path of a file, names; see `read_sources`.

    Raises:
        PallavaError: It is neither a source nor a file.
    """
    name, equals, root = text.partition("=")
    if equals and root and name in SOURCES:
        reader = SOURCES[name]
        usual = default_split if default_split in reader.splits else None
        return SourceSpec(name, root, split or usual, read_columns(columns) if reader.takes_columns else {})
    if Path(text).is_file():
        return SourceSpec("", text)
    if equals and name:
        raise PallavaError(f"{text!r} does not name a source, got {name!r}; choose {', '.join(SOURCES)}")
    expected = "NAME=ROOT, such as path-vqa=/data/pathvqa, or the kept.jsonl of `pallava data clean`"
    raise PallavaError(f"the file '{text}' does not exist; expected {expected}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a row shows and asks: in a training file all human messages, of a row that cannot be trained on too."""

    source: str  # or the path of the training file
    id: str  # the position of a row without an id
    images: tuple[str, ...]
    questions: tuple[str, ...]


_Rows = Callable[[Tally], Iterator[tuple[Record | Conversation, str]]]


class Records:
    """Records of the sources `names` with the paths of their images, in the order of their file.

    All images are in `folder`; `tally` counts what the reader left out in the last iteration.
    """

    def __init__(self, names: Sequence[str], folder: str | Path, rows: _Rows) -> None:
        self.names, self.folder, self.tally = list(names), Path(folder).resolve(), Tally()
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Record | Conversation, Path]]:
        """Yield each record with the path of its image; a `Conversation` with the folder of its images."""
        self.tally = Tally()
        for record, image in self._rows(self.tally):
            yield record, self.folder / image


def open_records(spec: SourceSpec | str, *, image_folder: str | Path | None = None, label: str = "") -> Records:
    """Open a data set, the kept records of cleaning, or a training file; `spec` may be a text, see `read_source`.

    A training file needs its image folder; a table and kept records do if it is not the usual one. Records of a data
    set bear the `label` instead of its name, if one is given.

    Raises:
        PallavaError: The data is of none of these kinds, or a training file comes without its image folder.
    """
    spec = read_source(spec) if isinstance(spec, str) else spec
    if spec.name:
        source = spec.open(image_folder=image_folder)
        source.name = label or source.name
        return Records([source.name], source.root, partial(_source_rows, source))
    path = Path(spec.root)
    first = next(json_rows(path), None)
    keys = list(first.value) if first and not isinstance(first, RowDropped) and isinstance(first.value, dict) else []
    if "conversations" in keys:
        if image_folder is None or not Path(image_folder).is_dir():
            found = "none" if image_folder is None else f"'{image_folder}'"
            raise PallavaError(f"the training file '{path}' needs the folder of its images, got {found}")
        return Records([str(path)], image_folder, partial(_training_rows, path))
    if "kind" in keys or (first is None and path.with_name(SUMMARY_NAME).exists()):
        summary = _read_summary(path.with_name(SUMMARY_NAME))
        return Records(summary["sources"], image_folder or summary["image_folder"], partial(_kept_rows, path))
    raise PallavaError(
        f"'{path}' must be a training file (id, image, conversations) or the kept.jsonl of `pallava data clean`, got "
        f"a first row with the keys: {', '.join(map(str, keys[:8])) or 'none'}"
    )


def _source_rows(source: Source, tally: Tally) -> Iterator[tuple[Record, str]]:
    for record in source:
        yield record, record.image
    tally.dropped, tally.examples = source.tally.dropped, source.tally.examples


def _kept_rows(path: Path, tally: Tally) -> Iterator[tuple[Record, str]]:
    for entry in RecordFile(path) if path.stat().st_size else ():  # nothing was kept
        try:
            image, record = str(entry.value["path"]), record_from_json(entry.value)
        except (KeyError, TypeError, ValueError) as error:
            raise PallavaError(f"'{path}', {entry.position}: not a kept record ({error})") from None
        yield record, image


def _training_rows(path: Path, tally: Tally) -> Iterator[tuple[Conversation, str]]:
    for entry in json_rows(path):
        try:
            if isinstance(entry, RowDropped):
                raise entry
            value = as_object(entry.value)
        except RowDropped as fault:  # `pallava data check` lists them
            tally.drop(fault.reason, str(fault))
            continue
        row_id = entry.position if value.get("id") is None else str(value["id"])
        found, messages = value.get("image"), value.get("conversations")
        names = filter(is_file_name, found if isinstance(found, list) else [found])
        talk = [each for each in (messages if isinstance(messages, list) else []) if isinstance(each, dict)]
        texts = [each.get("value") for each in talk if each.get("from") == "human"]
        questions = tuple(text for text in texts if isinstance(text, str))
        yield Conversation(str(path), row_id, tuple(names), questions), ""


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return {"image_folder": summary["image_folder"], "sources": list(summary["sources"])}
    except OSError:
        raise PallavaError(f"'{path}' does not exist, which names the image folder of kept.jsonl") from None
    except (ValueError, TypeError, KeyError):
        raise PallavaError(f"'{path}' is not the summary of `pallava data clean`") from None
