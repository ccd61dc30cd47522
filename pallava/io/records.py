"""Stream the entries of a JSON list or of a JSON Lines file; memory holds one stretch of the text at a time."""

import codecs
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors
from pallava.io.texts import check_encoding

_BOM = codecs.BOM_UTF8
_CHUNK_BYTES = 1 << 20
_MAX_RECORD = 64 << 20  # bytes; a forgotten quote must not read the rest of the file into memory
_EXPECTED = "expected a JSON list of records, or one JSON record a line (JSONL)"
_NO_SPACE = re.compile(r"[^ \t\r\n]|\Z")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Entry:
    """One JSON value and its place in the file."""

    index: int  # from 0
    position: str  # for messages: ``line 3``, or ``record 3 (line 5, column 1)`` in a list
    value: Any


class BadEntry(Exception):
    """A line that cannot be parsed; the message gives its place and the reason, without the file's name."""


class RecordFile:
    """A JSON list or JSON Lines file; iterating yields its entries one by one.

    Of its `num_bytes`, the current iteration has read `num_bytes_read`, for a progress bar.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._open() as file:
            self.num_bytes, self.num_bytes_read = file.seek(0, os.SEEK_END), 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield every entry; refuse a file that is empty, not JSON or not UTF-8."""
        if self.first_character() == "":
            raise PallavaError(f"'{self.path}' is empty; {_EXPECTED}")
        for entry in self.tolerant():
            if isinstance(entry, BadEntry):
                raise PallavaError(f"'{self.path}', {entry}; {_EXPECTED}")
            yield entry

    def tolerant(self) -> Iterator[Entry | BadEntry]:
        """Yield every entry, and a `BadEntry` for each broken line of JSON Lines.

        A damaged list is refused: the start of its next entry is unknown.
        """
        is_list = self.first_character() == "["
        try:
            with self._open() as file:
                for entry in _list_entries(file) if is_list else _line_entries(file):
                    self.num_bytes_read = file.tell()
                    yield entry
        except BadEntry as problem:
            raise PallavaError(f"'{self.path}', {problem}; {_EXPECTED}") from None

    def first_character(self) -> str:
        """Return the first character that is not a space; an empty text if the file has none.

        Raises:
            PallavaError: The file cannot be read.
        """
        with self._open() as file:
            while chunk := file.read(_CHUNK_BYTES):
                if text := chunk.lstrip(b" \t\r\n"):
                    return text[:1].decode("latin-1")
        return ""

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with report_os_errors(f"cannot read '{self.path}'"), self.path.open("rb") as file:
            head = file.read(4)
            check_encoding(self.path, head)
            file.seek(len(_BOM) if head.startswith(_BOM) else 0)
            yield file


def _line_entries(file: BinaryIO) -> Iterator[Entry | BadEntry]:
    index = number = 0
    while line := file.readline(_MAX_RECORD + 1):
        number, line = number + 1, line.removeprefix(_BOM)
        if len(line) > _MAX_RECORD and not line.endswith(b"\n"):
            yield BadEntry(f"line {number}: longer than {_MAX_RECORD} bytes")
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_RECORD)
        elif line.strip():
            yield _parse_line(line, number, index)
        else:
            continue
        index += 1


def _parse_line(line: bytes, number: int, index: int) -> Entry | BadEntry:
    try:
        return Entry(index, f"line {number}", _checked(json.loads(line.rstrip(b"\r\n").decode())))
    except UnicodeDecodeError as error:
        return BadEntry(f"line {number}, byte {error.start + 1}: not UTF-8 text")
    except json.JSONDecodeError as error:
        return BadEntry(f"line {number}, column {error.colno}: not JSON ({error.msg})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        return BadEntry(f"line {number}: not JSON that can be read ({error})")


def _checked(value: Any, levels: int = 100) -> Any:
    """Return a value, or raise ValueError if it is nested too deep to be written from whatever depth of calls."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if not levels:
            raise ValueError("nested more than 100 levels deep")
        _checked(each, levels - 1)
    return value


def _list_entries(file: BinaryIO) -> Iterator[Entry]:
    window = _Window(file)
    window.take("[")
    index = 0
    while window.peek() != "]" or index:
        name = f"record {index + 1}"
        position = f"{name} ({window.position()})"
        yield Entry(index, position, window.parse(name))
        index += 1
        if window.peek() == "]":
            break
        window.take(",")
    window.take("]")
    if window.peek():
        raise BadEntry(f"{window.position()}: text after the end of the list")


class _Window:
    """The stretch of a long text around the place that is being parsed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0  # where parsing stands
        self._counted, self._line, self._column = 0, 1, 1  # line and column of text[counted]

    def position(self) -> str:
        self._count_lines()
        return f"line {self._line}, column {self._column}"

    def peek(self) -> str:
        while True:
            self._at = _NO_SPACE.search(self._text, self._at).start()  # type: ignore[union-attr]  # at the end at last
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            what = f"found {found!r}" if found else "the text ends"
            raise BadEntry(f"{self.position()}: not JSON ({what} where {character!r} is due)")
        self._at += 1

    def parse(self, name: str) -> Any:
        while True:
            start = self._at
            try:
                value, end = _DECODER.raw_decode(self._text, start)
                _checked(value)
            except json.JSONDecodeError as error:
                if self._is_cut(error) and self._grow():
                    continue
                self._at += error.pos - start  # growing moves the place even where nothing comes
                raise BadEntry(f"{name}, {self.position()}: not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise BadEntry(f"{name}, {self.position()}: unreadable JSON ({error})") from None
            if len(self._text) - end <= 2 and self._grow():
                continue  # a number may go on: 1.5 | e-3
            self._at += end - start
            return value

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        # at the end of the stretch a longer text may be right
        return error.msg.startswith("Unterminated string") or len(self._text) - error.pos < 16

    def _grow(self) -> bool:
        """Drop what is parsed and read on, twice as much for a value that is already long."""
        self._count_lines()
        rest = self._text[self._at :]
        if len(rest) > _MAX_RECORD:
            raise BadEntry(f"{self.position()}: a record of more than {_MAX_RECORD} characters")
        chunk = self._file.read(max(_CHUNK_BYTES, len(rest)))
        try:
            more = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = self._file.tell() - len(error.object) + error.start
            raise BadEntry(f"byte {at + 1}: not UTF-8 text") from None
        self._text, self._at, self._counted = rest + more, 0, 0
        return bool(chunk)

    def _count_lines(self) -> None:
        if num_lines := self._text.count("\n", self._counted, self._at):
            self._line += num_lines
            self._column = self._at - self._text.rindex("\n", self._counted, self._at)
        else:
            self._column += self._at - self._counted
        self._counted = self._at
