"""Rows out of the files that the sets come in; a row that is broken costs that row and nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from pallava.data.sources.base import Part, RowDropped, printable
from pallava.errors import PallavaError
from pallava.io.records import Record as Row
from pallava.io.records import RecordFile

Progress: TypeAlias = Callable[[int], None]
"""Is told how many bytes of a file are read."""

MAX_ROW = 16 << 20
"""Longest line of JSONL and longest cell of a CSV, in bytes and characters: a forgotten quote must not read on."""

_MAX_TABLE = 1 << 30
_SHOWN = 8
_SPACES = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1)))) + "\u200b\u2060\ufeff"


def json_rows(path: Path, progress: Progress) -> Iterator[Row | RowDropped]:
    """Yields the records of a JSON list, or of JSONL, in which a broken line is one dropped row.

    Raises:
        PallavaError: The file cannot be read, or a list is damaged: where its next record begins cannot be told.
    """
    if _starts_with(path, b"["):
        file = RecordFile(path)
        for record in file:
            progress(file.num_bytes_read)
            yield record
    else:
        yield from _line_rows(path, progress)


def keyed_rows(path: Path, progress: Progress) -> Iterator[Row | RowDropped]:
    """Yields what `json_rows` does, and the values of one JSON object of objects, their keys as "qid"."""
    table = None if _starts_with(path, b"[") else _whole_object(path)
    if table is None:
        yield from json_rows(path, progress)
        return
    for index, (key, value) in enumerate(table.items()):
        yield Row(index, f"key {key!r}", {"qid": key, **value} if isinstance(value, dict) else value)
    progress(path.stat().st_size)


def csv_rows(path: Path, progress: Progress, *, columns: Collection[str] = ()) -> Iterator[Row | RowDropped]:
    """Yields each row as a dict of its cells by the names in the first line (see `column_name`).

    Cells are strings as they stand: ``N/A`` and ``None`` are text like any other.

    Args:
        path: The file.
        progress: Is told how far it is read.
        columns: Columns that must be there.

    Raises:
        PallavaError: The file cannot be read, or a column is missing.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(iter(lambda: file.readline(MAX_ROW), ""))
            names = [column_name(name) for name in next(reader, [])]
            if missing := [column for column in columns if column not in names]:
                raise PallavaError(
                    f"'{path}' has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'}"
                )
            for row in _cells(reader, path):
                progress(raw.tell())
                if isinstance(row, RowDropped):
                    yield row
                elif len(row.value) != len(names):
                    what = f"{len(row.value)} cells where the first line has {len(names)}"
                    yield RowDropped("malformed", f"{path.name}, {row.position}: {what}")
                else:
                    yield Row(row.index, row.position, dict(zip(names, row.value, strict=True)))
    except OSError as error:
        raise PallavaError(f"cannot read '{path}': {error.strerror}") from None


def headless_csv_rows(path: Path) -> Iterator[Row | RowDropped]:
    """Yields each row of a CSV without a header as a list of its cells."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from _cells(csv.reader(file), path)


def column_name(name: str) -> str:
    """A column's name in small letters, without stray spaces."""
    return re.sub(r"\s+", " ", tidy(name)).casefold()


def tidy(text: str) -> str:
    """Strips every kind of space, those without width too, and replaces what no file can hold."""
    return printable(text).strip(_SPACES)


def image_and_caption(row: dict[str, Any]) -> tuple[str, str]:
    """Takes both out of a row of ``{"image", "caption"}``.

    Raises:
        RowDropped: One is missing, or the caption is empty.
    """
    image, caption = text_of(row, "image"), text_of(row, "caption")
    if not caption:
        raise RowDropped("empty_caption", f"the caption of {image!r} is empty")
    return image, caption


def text_of(row: dict[str, Any], *keys: str) -> str:
    """Takes text out of a row, by the first of the keys that it has.

    Raises:
        RowDropped: None of the keys is there, or what is there is no text.
    """
    for key in keys:
        if key in row:
            value = row[key]
            if isinstance(value, str | None):
                return tidy(value or "")
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
            raise RowDropped("malformed", f"{key!r} is text, not {type(value).__name__}")
    raise RowDropped("malformed", f"the row has no {keys[0]!r}; it has {', '.join(map(repr, list(row)[:_SHOWN]))}")


def as_object(value: Any) -> dict[str, Any]:
    """Gives a row that is a JSON object.

    Raises:
        RowDropped: It is something else.
    """
    if not isinstance(value, dict):
        raise RowDropped("malformed", f"a row is an object, not {type(value).__name__}")
    return value


def pick_split(parts: Sequence[Part], split: str | None, where: Path) -> list[Part]:
    """Picks the parts of a split, all of them without one.

    Raises:
        PallavaError: There is no such split; the message names those there are.
    """
    chosen = [part for part in parts if split is None or part.split == split]
    if not chosen:
        splits = list(dict.fromkeys(part.split for part in parts if part.split))
        there = f"it has {', '.join(splits)}" if splits else "it has none"
        raise PallavaError(f"'{where}' has no split {split!r}; {there}")
    return chosen


def not_found(root: Path, name: str, looked_for: str) -> PallavaError:
    """The error for a folder that does not hold the set: what was looked for, what is there, where it may be."""
    if not root.is_dir():
        return PallavaError(f"no folder '{root}' to read {name} from; it should hold {looked_for}")
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    shown = ", ".join(entries[:_SHOWN]) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")
    archives = [entry for entry in entries if entry.endswith((".zip", ".tar", ".gz", ".tgz"))]
    hint = f"; unpack an archive with `pallava data unpack {archives[0]} FOLDER`" if archives else ""
    return PallavaError(f"'{root}' is not {name}: looked for {looked_for}; found {shown or 'nothing'}{hint}")


def _cells(reader: Any, path: Path) -> Iterator[Row | RowDropped]:
    """Yields rows that are not empty; `reader` is a csv.reader, whose type has no public name."""
    index = 0
    while True:
        position = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            yield RowDropped("malformed", f"{path.name}, {position}: {error}")
        else:
            if not cells:
                continue
            yield Row(index, position, cells)
        index += 1


def _line_rows(path: Path, progress: Progress) -> Iterator[Row | RowDropped]:
    index = number = 0
    with _opened(path) as file:
        while line := file.readline(MAX_ROW):
            number += 1
            progress(file.tell())
            if not line.endswith(b"\n") and len(line) == MAX_ROW:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW)
                yield RowDropped("malformed", f"{path.name}, line {number}: longer than {MAX_ROW} bytes")
            elif line.strip():
                yield _parsed(line, path, number, index)
            else:
                continue
            index += 1


def _parsed(line: bytes, path: Path, number: int, index: int) -> Row | RowDropped:
    try:
        return Row(index, f"line {number}", json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        return RowDropped("malformed", f"{path.name}, line {number}: not JSON ({error})")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise PallavaError(f"cannot read '{path}': {error.strerror}") from None


def _starts_with(path: Path, character: bytes) -> bool:
    with _opened(path) as file:
        return file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(character)


def _whole_object(path: Path) -> dict[str, Any] | None:
    """Gives a file's one JSON object of objects; None if it is JSONL.

    Raises:
        PallavaError: It is neither.
    """
    if path.stat().st_size > _MAX_TABLE:
        return None
    try:
        table = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        first = islice(_line_rows(path, lambda _: None), _SHOWN)
        if not any(isinstance(row, Row) and isinstance(row.value, dict) for row in first):
            raise PallavaError(f"'{path}' is damaged: neither one JSON object nor JSONL ({error})") from None
        return None
    if not isinstance(table, dict):
        return None
    num_objects = sum(isinstance(value, dict) for value in table.values())
    return table if 2 * num_objects >= len(table) else None  # else it is the one line of a JSONL
