"""Rows of the files that the sets come in; a broken row costs that row and nothing else."""

import csv
import io
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from pallava.errors import PallavaError, cap_message
from pallava.io.files import report_os_errors, whole_file
from pallava.io.hashing import hash_bytes
from pallava.io.records import BadEntry, Entry, RecordFile
from pallava.io.texts import BOM, check_encoding, find_damage

Progress: TypeAlias = Callable[[int], None]  # takes the number of bytes of a file that are read

SHOWN = 8  # number of names that an error lists
_MAX_ROW = 16 << 20  # characters of a line and of a cell of a CSV: a forgotten quote must not read on
_MAX_TABLE = 1 << 30
_BATCH = 64
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"II": ".tif", b"MM": ".tif", b"RI": ".webp", b"BM": ".bmp"}
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"  # none is above U+3000
_NO_WORDS = ("nan", "NaN", "inf", "-inf", "Infinity", "-Infinity")  # as Python, pandas and JSON write such numbers
_LOGGER = logging.getLogger(__name__)


class RowDropped(Exception):
    """A row that is left out, or why it should be; the reason is a word to count by, the message a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, cap_message(message))  # both, so that processes can exchange it
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


def json_rows(path: Path, progress: Progress = lambda num_bytes: None) -> Iterator[Entry | RowDropped]:
    """Yield the entries of a JSON list, or of JSONL, in which a broken line is one dropped row.

    A damaged list raises PallavaError: the start of its next entry is unknown.
    """
    file = RecordFile(path)
    for entry in file.tolerant():
        progress(file.num_bytes_read)
        yield RowDropped("malformed", f"{path.name}, {entry}") if isinstance(entry, BadEntry) else entry


def keyed_rows(path: Path, progress: Progress) -> Iterator[Entry | RowDropped]:
    """Yield the same as `json_rows`, or the values of one JSON object of objects, their keys as "qid"."""
    table = None if RecordFile(path).first_character() == "[" else _whole_object(path)
    if table is None:
        yield from json_rows(path, progress)
        return
    for index, (key, value) in enumerate(table.items()):
        yield Entry(index, f"key {key!r}", {"qid": key, **value} if isinstance(value, dict) else value)
    progress(path.stat().st_size)


def csv_rows(path: Path, progress: Progress, *, columns: Collection[str] = ()) -> Iterator[Entry | RowDropped]:
    """Yield each row as a dict of its cells by the names in the first line (see `column_name`).

    Cells are strings as they stand: ``N/A`` and ``None`` are text like any other. Each of the `columns` must be there.

    Raises:
        PallavaError: The file or its first line cannot be read, or one of the `columns` is missing.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_ROW))
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="") as file:
            check_encoding(path, raw.read(4))
            raw.seek(0)
            lines = (line.replace(BOM, "") for line in iter(lambda: file.readline(_MAX_ROW), ""))
            reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            header = next(reader, [])
            names = [column_name(name) for name in header]
            if missing := [column for column in columns if column not in names]:
                found = ", ".join(names) or "none"
                raise PallavaError(f"'{path}' lacks the column {missing[0]!r}; its columns are: {found}")
            for row in _table_rows(reader, header, names, path.name):
                progress(raw.tell())
                yield row
    except OSError as error:
        raise PallavaError(f"cannot read '{path}': {error.strerror}") from None
    except (csv.Error, RowDropped) as error:
        raise PallavaError(f"the first line of '{path}' cannot be read: {error}") from None


def _table_rows(reader: Any, header: Sequence[str], names: Sequence[str], file: str) -> Iterator[Entry | RowDropped]:
    index = 0
    while True:
        position = f"line {reader.line_num + 1}"
        cells, fault = [], ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader continues with the next line
            fault = str(error)
        if cells and len(cells) != len(names):
            fault = f"{len(cells)} cells where the first line has {len(names)}"
        elif cells and cells == header:
            fault = "the first line again"
        if fault:
            yield RowDropped("malformed", f"{file}, {position}: {fault}")
        elif cells:
            yield Entry(index, position, dict(zip(names, cells, strict=True)))
        index += bool(cells or fault)


def parquet_rows(path: Path, progress: Progress) -> Iterator[Entry]:
    """Yield the rows of a parquet file as dicts, a few at a time.

    Raises:
        PallavaError: The file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            size, num_rows = path.stat().st_size, max(file.metadata.num_rows, 1)
            index = 0
            for batch in file.iter_batches(_BATCH):
                for value in batch.to_pylist():
                    progress(size * (index + 1) // num_rows)
                    yield Entry(index, f"row {index + 1}", value)
                    index += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PallavaError(f"'{path}' is not a readable parquet file ({error})") from None


def save_image(image: Any, root: Path, folder: str) -> str:
    """Write an image of a parquet file, ``{"bytes", "path"}`` or bytes, to a folder of the root unless it exists.

    Its name is the hash of its bytes, so that each is written once. Return its path relative to the root.

    Raises:
        RowDropped: The row holds no image.
        PallavaError: The image cannot be written.
    """
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes) or not content:
        raise RowDropped("malformed", "the row holds no image")
    name = f"{folder}/{hash_bytes(content)[:32]}{_ENDINGS.get(content[:2], '.jpg')}"
    path = root / name
    with report_os_errors(f"cannot write the images of the parquet files: '{path}'"):
        if not path.parent.is_dir():
            _LOGGER.warning("writing the images inside of the parquet files to %s", path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            with whole_file(path, "wb") as file:
                file.write(content)
                file.flush()
                os.utime(file.fileno(), (0, 0))  # as the name, the same on every machine: scores are stored by both
    return name


def inner_path(image: str) -> str:
    """Return an image's path in its simplest form, or raise RowDropped if it names no file or leaves the folder."""
    path = posixpath.normpath(image)  # "." for an empty text
    if path == "." or find_damage(image):
        raise RowDropped("malformed", f"{image!r} is not the name of a file")
    if image.startswith("/") or ".." in image.split("/"):
        raise RowDropped("outside_folder", f"{image!r} leaves the image folder")
    return path


def column_name(name: str) -> str:
    """Return a column's name in small letters, without stray spaces."""
    return re.sub(r"\s+", " ", tidy(name)).casefold()


def tidy(text: str) -> str:
    """Strip every kind of space, or raise RowDropped if a text is damaged; the word for a missing number is empty."""
    if damage := find_damage(text):
        raise RowDropped("malformed", damage)
    text = text.replace(BOM, "").strip(_SPACES)
    return "" if text in _NO_WORDS else text


def image_and_caption(row: dict[str, Any], image_key: str = "image") -> tuple[str, str]:
    """Return both values of a row of ``{"image", "caption"}``, or raise RowDropped."""
    image, caption = text_of(row, image_key), text_of(row, "caption")
    if not caption:
        raise RowDropped("empty_caption", f"the caption of {image!r} is empty")
    return image, caption


def question_and_answer(question: str, answer: str) -> tuple[str, str]:
    """Return both, or raise RowDropped if one is empty."""
    if not question:
        raise RowDropped("empty_question", "the question is empty")
    if not answer:
        raise RowDropped("empty_answer", f"the answer to {question!r:.80} is empty")
    return question, answer


def texts_of(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return those of the keys whose values are text, with their values."""
    return {key: row[key] for key in keys if isinstance(row.get(key), str)}


def answer_type(answer: str) -> str:
    """Return the type of an answer that states none: "yes/no" or "other"."""
    return "yes/no" if answer.casefold() in ("yes", "no") else "other"


def text_of(row: dict[str, Any], *keys: str) -> str:
    """Return the text of the first of the keys that a row has, or raise RowDropped if it has none or no text."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise RowDropped("malformed", f"the row lacks {keys[0]!r}; it has {', '.join(map(repr, list(row)[:SHOWN]))}")
    value = row[key]
    if value is None or isinstance(value, str):
        return tidy(value or "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return tidy(str(value))
    raise RowDropped("malformed", f"{key!r} must be text, got {type(value).__name__}")


def as_object(value: Any) -> dict[str, Any]:
    """Return a row that is a JSON object, or raise RowDropped."""
    if not isinstance(value, dict):
        raise RowDropped("malformed", f"expected a JSON object, got {type(value).__name__}")
    return value


def as_sound_object(value: Any) -> dict[str, Any]:
    """Return a JSON object without byte order marks, NaN being None, or raise RowDropped if any text is damaged."""
    text = json.dumps(as_object(value), ensure_ascii=False)
    if damage := find_damage(text.replace(r"\\", "").replace(r"\u0000", "\0")):
        raise RowDropped("malformed", damage)
    return json.loads(text.replace(BOM, ""), parse_constant=lambda name: None)


def _whole_object(path: Path) -> dict[str, Any] | None:
    """Return a file's one JSON object of objects; None if it is JSONL, and an error if it is neither."""
    if path.stat().st_size > _MAX_TABLE:
        return None
    try:
        table = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        first = islice(RecordFile(path).tolerant(), SHOWN)
        if not any(isinstance(row, Entry) and isinstance(row.value, dict) for row in first):
            raise PallavaError(f"'{path}' is damaged: neither one JSON object nor JSONL ({error})") from None
        return None
    if not isinstance(table, dict):
        return None
    num_objects = sum(isinstance(value, dict) for value in table.values())
    return table if 2 * num_objects >= len(table) else None  # it is the one line of a JSONL
