"""Records of data sets, and what every reader shares: the registry, counts of dropped rows, the folders of images."""

import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pallava.data.sources.files import SHOWN, RowDropped, csv_rows, inner_path, json_rows, keyed_rows, parquet_rows
from pallava.errors import PallavaError
from pallava.io.records import Entry

IMAGE_POLICIES = ("first", "each", "single-only")
"""Treatment of a row with several images: take its first, make a record of each, or drop the row."""

_NUM_EXAMPLES = 3
_PROBED_ROWS = 64

_AnySource = TypeVar("_AnySource", bound="type[Source]")


@dataclass(frozen=True, slots=True)
class _ImageRecord:
    """An image as a POSIX path relative to its source's root, and an id, unique there and the same in every run."""

    source: str
    id: str
    image: str


@dataclass(frozen=True, slots=True)
class Pair(_ImageRecord):
    """An image and its caption, and further facts of the row in `metadata`, as JSON holds them."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question(_ImageRecord):
    """A question about an image, and further facts of the row in `metadata`."""

    question: str  # without its options
    answer: str  # the letter of an option where the type is "choice"
    options: tuple[str, ...] = ()  # without their letters
    answer_type: str = ""  # "yes/no", "number", "other" or "choice"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled(_ImageRecord):
    """An image and the name of its class, and further facts in `metadata`."""

    label: str
    metadata: dict[str, Any] = field(default_factory=dict)


Record = Pair | Question | Labelled

# Kinds of sources, and the records of each.
KINDS: dict[str, type[Record]] = {"captions": Pair, "questions": Question, "classes": Labelled}


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as a JSON object with its "kind"."""
    kind = next(kind for kind, record_type in KINDS.items() if isinstance(record, record_type))
    return {"kind": kind, **asdict(record)}


def record_from_json(value: dict[str, Any]) -> Record:
    """Return the record that `to_json` was given, or raise PallavaError; other keys of the object are ignored."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in KINDS:
        raise PallavaError(f"not a record: its kind must be one of {', '.join(KINDS)}, got {kind!r}")
    known = {each.name: value[each.name] for each in fields(KINDS[kind]) if each.name in value}
    try:
        if "options" in known:
            known["options"] = tuple(known["options"])
        return KINDS[kind](**known)
    except TypeError as error:
        raise PallavaError(f"not a record of kind {kind}: {error}") from None


@dataclass
class Tally:
    """Counts of the rows that a reader has seen."""

    num_records: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first three of each reason, with positions

    def drop(self, reason: str, example: str) -> None:
        """Count a row that is dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self.dropped[reason] <= _NUM_EXAMPLES:
            self.examples.setdefault(reason, []).append(example)


@dataclass(frozen=True)
class SourceFile:
    """A file (or folder) of a source."""

    path: Path
    split: str = ""  # that it holds; empty where the set has none
    folders: tuple[str, ...] = ("",)  # possible ones of its images, relative to the root, the likeliest first


class Source:
    """A data set on disk; iterating streams its records in file order and counts the dropped rows.

    A reader defines `find_files` and `convert`, and `read_rows` for files of another kind than the usual. No image is
    opened: the names in the first rows of each file decide which of the known layouts the folder has.

    Paths of images are relative to `root`. A `split` of None means all of them; `columns` and `image_folder` are for a
    set of the user's own. `tally` and, for a progress bar, `num_bytes_read` are of the current iteration or the last.
    """

    name: str  # as --source NAME=ROOT has it
    kind: str  # one of KINDS
    layout: ClassVar[str] = ""  # the files that the root must hold, for the error of a folder without them
    classes: ClassVar[tuple[str, ...]] = ()  # of a set of classes, in the order of their numbers
    splits: ClassVar[tuple[str, ...]] = ()  # that the set always has; commands take "train" or "test" if it is one
    has_keys: ClassVar[bool] = False  # whether a JSON file may be one object of rows by their "qid"
    takes_columns: ClassVar[bool] = False  # whether the names of its columns come from the user
    needs: Collection[str] = ()  # columns that a .csv or .tsv file must have, in small letters
    _num_bytes_before = 0  # in earlier files of the iteration

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        image_policy: str = "first",
        columns: Mapping[str, str] | None = None,
        image_folder: str | Path | None = None,
    ) -> None:
        if image_policy not in IMAGE_POLICIES:
            raise PallavaError(f"{image_policy!r} is not an image policy; choose {', '.join(IMAGE_POLICIES)}")
        if columns and not self.takes_columns:
            raise PallavaError(f"{self.name} has columns of its own; --columns is for csv=FILE")
        self.root, self.split, self.image_policy = Path(root), split, image_policy
        self.columns = dict(columns or {})
        self.image_folder = None if image_folder is None else Path(image_folder)
        self.tally = Tally()
        found = self.find_files()
        if not found:
            raise _not_found(self.root, self.name, self.layout)
        self.files = [file for file in found if self.split is None or file.split == self.split]
        if not self.files:
            known = ", ".join(dict.fromkeys(file.split for file in found if file.split)) or "none"
            raise PallavaError(f"'{self.root}' lacks the split {self.split!r}; its splits are: {known}")
        self.num_bytes = sum(file.path.stat().st_size for file in self.files)
        self.num_bytes_read = 0

    def __iter__(self) -> Iterator[Record]:
        """Yield every record, or raise PallavaError where a file, or its next row, cannot be read."""
        self.tally = Tally()
        self.num_bytes_read = self._num_bytes_before = 0
        for file in self.files:
            yield from self._records(file)
            self._num_bytes_before += file.path.stat().st_size
            self.num_bytes_read = self._num_bytes_before

    def report_progress(self, num_bytes: int) -> None:
        """Record how many bytes of the current file are read."""
        self.num_bytes_read = self._num_bytes_before + num_bytes

    def find_files(self) -> list[SourceFile]:
        """Return the files below the root, of all splits; none if it does not hold the set."""
        raise NotImplementedError

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        """Yield the rows of a file; a RowDropped stands for a row that cannot be parsed.

        By its ending: cells of .csv and .tsv by the names of the columns, rows of .parquet, else entries of JSON or
        JSONL.
        """
        if file.path.suffix.lower() in (".csv", ".tsv"):
            return csv_rows(file.path, self.report_progress, columns=self.needs)
        read = parquet_rows if file.path.suffix == ".parquet" else keyed_rows if self.has_keys else json_rows
        return read(file.path, self.report_progress)

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        """Return the records of a row, their images relative to the images' folder, or raise RowDropped."""
        raise NotImplementedError

    def place(self, folder: str, image: str) -> str:
        """Return the path of an image in one of the file's folders."""
        return posixpath.join(folder, image)

    def each_image(self, row_id: str, images: Sequence[str]) -> list[tuple[str, str]]:
        """Return (id, image) of a row's records by the image policy."""
        if len(images) == 1 or self.image_policy == "first":
            return [(row_id, images[0])]
        if self.image_policy == "single-only":
            raise RowDropped("several_images", f"the row has {len(images)} images")
        return [(f"{row_id}-{number}", image) for number, image in enumerate(images)]

    def _records(self, file: SourceFile) -> Iterator[Record]:
        results = (self._result(row, file) for row in self.read_rows(file))
        head = list(islice(results, _PROBED_ROWS))
        images = [image for result in head if not isinstance(result, RowDropped) for _, image in result]
        # the folder with the most of the images; if all are empty, the first that exists
        paths = [[self.root / self.place(path, image) for image in images] for path in file.folders]
        counts = [sum(map(os.path.isfile, each)) for each in paths]  # Path's own raises for a name that is too long
        existing = [path for path in file.folders if path and (self.root / path).is_dir()]
        folder = file.folders[counts.index(max(counts))] if any(counts) else [*existing, file.folders[0]][0]
        for result in chain(head, results):
            self.tally.num_records += 1
            if isinstance(result, RowDropped):
                self.tally.drop(result.reason, str(result))
                continue
            for record, image in result:
                yield replace(record, source=self.name, image=self.place(folder, image))

    def _result(self, row: Entry | RowDropped, file: SourceFile) -> list[tuple[Record, str]] | RowDropped:
        if isinstance(row, RowDropped):
            return row
        try:
            return [(record, inner_path(record.image)) for record in self.convert(row, file)]
        except PallavaError:
            raise
        except (RowDropped, ValueError, TypeError) as error:  # such as a number of thousands of digits
            return RowDropped(getattr(error, "reason", "malformed"), f"{file.path.name}, {row.position}: {error}")


SOURCES: dict[str, type[Source]] = {}  # by name; the modules of this folder are imported with it


def register_source(source: _AnySource) -> _AnySource:
    """Add a reader, a `Source` with a name and a kind of its own, to the registry, as a decorator of its class.

    Raises:
        PallavaError: The class lacks a name or kind, or another class has that name.
    """
    name, kind = getattr(source, "name", ""), getattr(source, "kind", "")
    if not name or "=" in name or kind not in KINDS:
        needed = f"a name without '=' and a kind of {', '.join(KINDS)}"
        raise PallavaError(f"{source.__qualname__} must have {needed}, got {name!r} and {kind!r}")
    other = SOURCES.get(name, source)
    if (other.__module__, other.__qualname__) != (source.__module__, source.__qualname__):
        raise PallavaError(f"the source name {name!r} is already taken by {other.__module__}.{other.__qualname__}")
    SOURCES[name] = source
    return source


def _not_found(root: Path, name: str, layout: str) -> PallavaError:
    if not root.exists():
        return PallavaError(f"'{root}' does not exist; the source {name} needs {layout}")
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir()) if root.is_dir() else []
    shown = ", ".join(entries[:SHOWN]) + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")
    archives = [entry for entry in entries if entry.endswith((".zip", ".tar", ".gz", ".tgz"))]
    hint = f"; unpack an archive with `pallava data unpack {archives[0]} FOLDER`" if archives else ""
    return PallavaError(f"'{root}' is not {name}: expected {layout}; found {shown or 'nothing'}{hint}")
