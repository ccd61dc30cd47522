"""Records of the public data sets, and what every reader shares: counts of what was dropped, and where images lie."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pallava.errors import PallavaError
from pallava.io.records import Record as Row

IMAGE_POLICIES = ("first", "each", "single-only")
"""What becomes of a row with several images: its first is taken, a record is made of each, or the row is dropped."""

_EXAMPLES = 3
_EXAMPLE_LENGTH = 500
_PROBED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its caption.

    Attributes:
        source: Name of the source.
        id: Unique within the source, and the same in every run.
        image: POSIX path relative to the source's root.
        text: The caption.
        metadata: What else the set says about it, as JSON holds it.
    """

    source: str
    id: str
    image: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image.

    Attributes:
        source: Name of the source.
        id: Unique within the source, and the same in every run.
        image: POSIX path relative to the source's root.
        question: The question, without its options.
        answer: The answer; the letter of an option where the type is "choice".
        options: Texts of the options without their letters.
        answer_type: "yes/no", "number", "other" or "choice".
        metadata: What else the set says about it, as JSON holds it.
    """

    source: str
    id: str
    image: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    answer_type: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image and its class.

    Attributes:
        source: Name of the source.
        id: Unique within the source, and the same in every run.
        image: POSIX path relative to the source's root.
        label: Name of the class.
        metadata: What else the set says about it, as JSON holds it.
    """

    source: str
    id: str
    image: str
    label: str
    metadata: dict[str, Any] = field(default_factory=dict)


Record = Pair | Question | Labelled
AnyRecord = TypeVar("AnyRecord", Pair, Question, Labelled)

KINDS: dict[str, type[Record]] = {"captions": Pair, "questions": Question, "classes": Labelled}
"""Kinds of sources, and what their readers yield."""

_KIND_NAMES = {record_type: kind for kind, record_type in KINDS.items()}


def to_json(record: Record) -> dict[str, Any]:
    """Gives a record as JSON holds it, with its "kind"."""
    return {"kind": _KIND_NAMES[type(record)], **asdict(record)}


def record_from_json(value: dict[str, Any]) -> Record:
    """The record that `to_json` gave; what else the object holds is left.

    Raises:
        PallavaError: It is no such record; the message says why.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in KINDS:
        raise PallavaError(f"not a record: its kind is {kind!r}, known are {', '.join(KINDS)}")
    known = {each.name: value[each.name] for each in fields(KINDS[kind]) if each.name in value}
    if "options" in known:
        known["options"] = tuple(known["options"])
    try:
        return KINDS[kind](**known)
    except TypeError as error:
        raise PallavaError(f"not a record of kind {kind}: {error}") from None


@dataclass
class Tally:
    """What a reader did with the rows.

    Attributes:
        num_records: Rows read.
        num_yielded: Records yielded; more than rows where each image of a row makes a record.
        dropped: Count of rows dropped, for each reason.
        examples: The first three of each reason, with their positions.
    """

    num_records: int = 0
    num_yielded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: str) -> None:
        """Counts a row that is dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(example[:_EXAMPLE_LENGTH])


class RowDropped(Exception):
    """A row that gives no record; the reason is a word to count by, the message a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Part:
    """A file of a source.

    Attributes:
        path: The file.
        split: Name of the split it holds, such as "train"; empty where the set has none.
        folders: Where its images may lie, relative to the root, the likeliest first.
    """

    path: Path
    split: str = ""
    folders: tuple[str, ...] = ("",)


class Source:
    """A data set on disk; iterating streams its records in file order and counts what is dropped.

    A reader gives the files (`_find_parts`), their rows (`_rows`) and the records of a row (`_convert`). No image is
    opened: which of the known layouts the folder has is decided by the names in the first rows of each file.

    Attributes:
        name: Name of the source.
        kind: One of `KINDS`.
        root: What the images' paths are relative to.
        split: The split that is read; None for all of them.
        image_policy: One of `IMAGE_POLICIES`.
        parts: The files that are read.
        tally: Counts of the current iteration, or of the last one.
        num_bytes: Size of the files that are read.
        num_bytes_read: How far the current iteration has come, for a progress bar.
    """

    name: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, root: str | Path, *, split: str | None = None, image_policy: str = "first") -> None:
        if image_policy not in IMAGE_POLICIES:
            raise PallavaError(f"no image policy {image_policy!r}; there are {', '.join(IMAGE_POLICIES)}")
        self.root = Path(root)
        self.split = split
        self.image_policy = image_policy
        self.tally = Tally()
        self.parts = self._find_parts()
        self.num_bytes = sum(part.path.stat().st_size for part in self.parts)
        self.num_bytes_read = 0

    def __iter__(self) -> Iterator[Record]:
        """Yields every record.

        Raises:
            PallavaError: A file as a whole cannot be read, or is damaged at a place after which no row can be told.
        """
        self.tally = Tally()
        before = 0
        for part in self.parts:
            for record in self._records(part):
                self.num_bytes_read = before + self._num_bytes_read_of_part
                yield record
            before += part.path.stat().st_size
        self.num_bytes_read = before

    _num_bytes_read_of_part = 0

    def _progress(self, num_bytes: int) -> None:
        """Is told by the readers how far the current file is read."""
        self._num_bytes_read_of_part = num_bytes

    def _find_parts(self) -> list[Part]:
        """Finds the files of the chosen split, or raises a PallavaError that names what is missing."""
        raise NotImplementedError

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        """Yields the rows of a file; a RowDropped stands for a row that cannot be told apart into its fields."""
        raise NotImplementedError

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        """Gives the records of a row, their images relative to the images' folder, or raises RowDropped."""
        raise NotImplementedError

    def _place(self, folder: str, image: str) -> str:
        """Puts an image's name into a folder."""
        return posixpath.join(folder, image)

    def _each_image(self, row_id: str, images: Sequence[str]) -> list[tuple[str, str]]:
        """Gives (id, image) for the records of a row by the image policy."""
        if len(images) == 1 or self.image_policy == "first":
            return [(row_id, images[0])]
        if self.image_policy == "single-only":
            raise RowDropped("several_images", f"the row has {len(images)} images")
        return [(f"{row_id}-{number}", image) for number, image in enumerate(images)]

    def _records(self, part: Part) -> Iterator[Record]:
        self._num_bytes_read_of_part = 0
        results = (self._result(row, part) for row in self._rows(part))
        head = list(islice(results, _PROBED_ROWS))
        images = [record.image for result in head if not isinstance(result, RowDropped) for record in result]
        folder = self._choose_folder(part.folders, images)
        for result in chain(head, results):
            self.tally.num_records += 1
            if isinstance(result, RowDropped):
                self.tally.drop(result.reason, str(result))
                continue
            for record in result:
                self.tally.num_yielded += 1
                yield replace(record, image=self._place(folder, record.image))

    def _result(self, row: Row | RowDropped, part: Part) -> Sequence[Record] | RowDropped:
        if isinstance(row, RowDropped):
            return row
        try:
            records = self._convert(row, part)
            return [replace(record, image=inner_path(record.image)) for record in records]
        except RowDropped as dropped:
            return RowDropped(dropped.reason, f"{part.path.name}, {row.position}: {dropped}")
        except PallavaError:
            raise
        except (ValueError, TypeError) as error:  # such as a number of thousands of digits
            return RowDropped("malformed", f"{part.path.name}, {row.position}: {error}")

    def _choose_folder(self, folders: Sequence[str], images: Iterable[str]) -> str:
        """The folder that holds the most of the images; where none holds any, the first that exists."""
        images = list(images)
        counts = [sum((self.root / self._place(folder, image)).is_file() for image in images) for folder in folders]
        if any(counts):
            return folders[counts.index(max(counts))]
        return next((folder for folder in folders if folder and (self.root / folder).is_dir()), folders[0])


def inner_path(image: str) -> str:
    """Gives an image's path in its simplest form.

    Raises:
        RowDropped: It is no file's name, or leaves the folder.
    """
    if not image or "\0" in image or printable(image) != image:
        raise RowDropped("malformed", f"{image!r} is not the name of a file")
    if image.startswith("/") or ".." in image.split("/"):
        raise RowDropped("outside_folder", f"{image!r} leaves the image folder")
    path = posixpath.normpath(image)
    if path == ".":
        raise RowDropped("malformed", f"{image!r} is not the name of a file")
    return path


def printable(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON can hold and a file cannot."""
    return text if text.isascii() else text.encode(errors="replace").decode()
