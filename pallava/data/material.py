"""Open the data that a user names on a command line.

It is a data set as NAME=ROOT, the kept.jsonl of `pallava data clean`, or a training file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pallava.data.sources import SOURCES, Source, open_source
from pallava.data.sources.base import KINDS, Record, record_from_json
from pallava.data.sources.files import RowDropped, json_rows
from pallava.data.training_row import TrainingRow, read_row
from pallava.errors import PallavaError
from pallava.io.records import Entry, RecordFile

SUMMARY_NAME = "summary.json"
"""Name of the file that cleaning writes beside the kept records."""

COLUMNS_HELP = "columns of csv=FILE: image=COLUMN,caption=COLUMN or image=COLUMN,question=COLUMN,answer=COLUMN"
"""Help text of ``--columns``."""

_EXPECTED = "NAME=ROOT, such as path-vqa=/data/pathvqa, or the kept.jsonl of `pallava data clean`"


@dataclass(frozen=True)
class SourceSpec:
    """A data set as a user names it.

    Attributes:
        name: Name of a source; empty if `root` is a kept.jsonl or a training file.
        root: Its folder or file.
        split: The split to read; None for the default of the set.
        columns: Columns of a table, such as ``{"image": "file", "caption": "text"}``.
    """

    name: str
    root: str
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def open(self, *, image_policy: str = "first", image_folder: str | Path | None = None) -> Source:
        """Open the source, as `pallava.data.sources.open_source` does.

        Raises:
            PallavaError: It does not exist, or does not look like the set.
        """
        options = {"split": self.split, "columns": self.columns, "image_folder": image_folder}
        return open_source(self.name, self.root, image_policy=image_policy, **options)  # type: ignore[arg-type]


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
    add_columns_option(parser)


def add_columns_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--columns`` alone, for `read_columns`."""
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
        key, equals, column = map(str.strip, part.partition("="))
        if not (key and equals and column) or key in columns:
            raise PallavaError(f"--columns must be KEY=COLUMN,... with each key once, got {part!r} in {given!r}")
        columns[key] = column
    return columns


def read_sources(
    sources: Sequence[str],
    splits: Sequence[str] = (),
    columns: str | Mapping[str, str] | None = None,
    *,
    default_split: str | None = None,
) -> list[SourceSpec]:
    """Return the data sets that the options of `add_source_options` name.

    Args:
        sources: Values of ``--source``.
        splits: Values of ``--split``.
        columns: Value of ``--columns``, or a mapping.
        default_split: Split of the sets that always have it, unless ``--split`` names another.

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
    if given and not any(name in SOURCES and SOURCES[name].takes_columns for name in names):
        raise PallavaError(f"--columns is for csv=FILE, got the sources {', '.join(sources)}")
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
    """Return the data set that one value names: NAME=ROOT, or the path of a file.

    Args:
        text: The value.
        split: The split to read.
        columns: Columns of a table; ignored for other sets.
        default_split: Split of a set that always has it, where `split` is None.

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
    raise PallavaError(f"the file '{text}' does not exist; expected {_EXPECTED}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of a training file.

    Attributes:
        source: Path of the file.
        id: Its id, or its position where it has none.
        row: Its images and turns.
    """

    source: str
    id: str
    row: TrainingRow


class Records:
    """Records with the paths of their images, in the order of their file.

    Attributes:
        names: Names of the sources.
        folders: Folders that hold all images.
        dropped: Count of what the reader left out in the last iteration, for each reason.
        examples: The first few of each reason.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folders = list(names), [folder]
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[tuple[Record | Conversation, Path]]:
        """Yield each record with the path of its image; a `Conversation` with the folder of its images.

        Raises:
            PallavaError: The data cannot be read.
        """
        raise NotImplementedError


class _SourceRecords(Records):
    def __init__(self, source: Source) -> None:
        super().__init__([source.name], source.root.resolve())
        self._source = source

    def __iter__(self) -> Iterator[tuple[Record, Path]]:
        for record in self._source:
            yield record, self.folders[0] / record.image
        self.dropped, self.examples = dict(self._source.tally.dropped), dict(self._source.tally.examples)


class _KeptRecords(Records):
    def __init__(self, path: Path, image_folder: str | Path | None) -> None:
        summary = _read_summary(path.with_name(SUMMARY_NAME))
        super().__init__(summary["sources"], Path(image_folder or summary["image_folder"]).resolve())
        self._records = RecordFile(path)

    def __iter__(self) -> Iterator[tuple[Record, Path]]:
        for entry in self._records if self._records.num_bytes else ():  # nothing was kept
            try:
                path = self.folders[0] / entry.value["path"]
                record = record_from_json(entry.value)
            except (KeyError, TypeError, ValueError) as error:
                raise PallavaError(f"'{self._records.path}', {entry.position}: not a kept record ({error})") from None
            yield record, path


class _TrainingRecords(Records):
    def __init__(self, path: Path, image_folder: Path) -> None:
        super().__init__([str(path)], image_folder.resolve())
        self._path = path

    def __iter__(self) -> Iterator[tuple[Conversation, Path]]:
        self.dropped = {}
        for entry in json_rows(self._path):
            try:
                row = read_row(None if isinstance(entry, RowDropped) else entry.value)
            except RowDropped as fault:  # `pallava data check` lists them
                self.dropped[fault.reason] = self.dropped.get(fault.reason, 0) + 1
                continue
            assert isinstance(entry, Entry)
            row_id = entry.value.get("id")
            yield Conversation(self.names[0], entry.position if row_id is None else str(row_id), row), self.folders[0]


def open_records(spec: SourceSpec | str, *, image_folder: str | Path | None = None) -> Records:
    """Open a data set, the kept records of cleaning, or a training file.

    Args:
        spec: The data, or its text on a command line.
        image_folder: Folder of the images of a training file or of a table; for kept records where it is not the one
            that their summary names.

    Raises:
        PallavaError: The data is of none of these kinds, or a training file comes without its image folder.
    """
    spec = read_source(spec) if isinstance(spec, str) else spec
    if spec.name:
        return _SourceRecords(spec.open(image_folder=image_folder))
    path = Path(spec.root)
    first = next(json_rows(path), None)
    keys = list(first.value) if first and not isinstance(first, RowDropped) and isinstance(first.value, dict) else []
    if "conversations" in keys:
        if image_folder is None or not Path(image_folder).is_dir():
            found = "none" if image_folder is None else f"'{image_folder}'"
            raise PallavaError(f"the training file '{path}' needs the folder of its images, got {found}")
        return _TrainingRecords(path, Path(image_folder))
    if "kind" in keys or (first is None and path.with_name(SUMMARY_NAME).exists()):
        return _KeptRecords(path, image_folder)
    raise PallavaError(
        f"'{path}' must be a training file (id, image, conversations) or the kept.jsonl of `pallava data clean`, got "
        f"a first row with the keys: {', '.join(map(str, keys[:8])) or 'none'}"
    )


def common_folder(records: Sequence[Records]) -> Path:
    """Return the deepest folder that holds the images of all."""
    return Path(os.path.commonpath([folder for each in records for folder in each.folders]))


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise PallavaError(f"'{path}' does not exist, which names the image folder of kept.jsonl") from None
    except ValueError:
        summary = None
    if not isinstance(summary, dict) or not {"image_folder", "sources"} <= summary.keys():
        raise PallavaError(f"'{path}' is not the summary of `pallava data clean`")
    return summary
