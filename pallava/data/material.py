"""What a user names on a command line: a source as NAME=ROOT, or the records that cleaning kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pallava.data.sources import SOURCES, open_source
from pallava.data.sources.base import Record, record_from_json
from pallava.errors import PallavaError
from pallava.io.records import RecordFile

SUMMARY_NAME = "summary.json"
"""What cleaning writes beside the kept records."""
EXPECTED = "expected NAME=ROOT, such as path-vqa=/data/pathvqa, or the kept.jsonl of `pallava data clean`"
"""For messages about what is neither."""


class Material(Protocol):
    """Records with the paths of their images, in the order of their file.

    Attributes:
        names: Names of the sources.
        folders: Folders that hold all images.
        dropped: What the reader left out in the last iteration, by reason.
        examples: The first few of each reason.
    """

    names: list[str]
    folders: list[Path]
    dropped: dict[str, int]
    examples: dict[str, list[str]]

    def __iter__(self) -> Iterator[tuple[Record, Path]]: ...


class SourceMaterial:
    """A public set as it lies on the disk."""

    def __init__(self, name: str, root: str | Path, *, split: str | None = None) -> None:
        """Opens the set.

        Raises:
            PallavaError: There is no reader of that name, or the folder does not look like the set.
        """
        self._source = open_source(name, Path(root), split=split)
        self._root = self._source.root.resolve()
        self.names, self.folders = [name], [self._root]
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[tuple[Record, Path]]:
        """Yields the records of the set."""
        for record in self._source:
            yield record, self._root / record.image
        self.dropped, self.examples = dict(self._source.tally.dropped), dict(self._source.tally.examples)


class KeptMaterial:
    """The records that cleaning kept."""

    def __init__(self, path: str | Path, *, image_folder: str | Path | None = None) -> None:
        """Finds the images by the summary beside the file, unless a folder is given.

        Raises:
            PallavaError: The summary is missing or not one.
        """
        self._records = RecordFile(path)
        summary = _read_summary(Path(path).with_name(SUMMARY_NAME))
        self._folder = Path(image_folder or summary["image_folder"]).resolve()
        self.names, self.folders = list(summary["sources"]), [self._folder]
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[tuple[Record, Path]]:
        """Yields the kept records.

        Raises:
            PallavaError: A line is no record.
        """
        for line in self._records:
            try:
                path = self._folder / line.value["path"]
                record = record_from_json(line.value)
            except (KeyError, TypeError, ValueError) as error:
                raise PallavaError(f"'{self._records.path}', {line.position}: not a kept record ({error})") from None
            yield record, path


def open_material(
    text: str, *, split: str | None = None, image_folder: str | Path | None = None
) -> SourceMaterial | KeptMaterial:
    """Opens what a user named.

    Args:
        text: NAME=ROOT, or the path of kept.jsonl.
        split: Of a source; kept records have theirs behind them.
        image_folder: Of kept records, where it is not the one that their summary names.

    Raises:
        PallavaError: It is neither a source nor kept records.
    """
    name, equals, root = text.partition("=")
    if equals and name in SOURCES:
        return SourceMaterial(name, root, split=split)
    if Path(text).is_file():
        return KeptMaterial(text, image_folder=image_folder)
    if equals:
        raise PallavaError(f"there is no source '{name}'; known are {', '.join(SOURCES)}")
    raise PallavaError(f"there is no file '{text}'; {EXPECTED}")


def common_folder(materials: Sequence[Material]) -> Path:
    """The deepest folder that holds the images of all."""
    return Path(os.path.commonpath([folder for material in materials for folder in material.folders]))


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise PallavaError(f"'{path}' is missing, which says where the images of kept.jsonl lie; {EXPECTED}") from None
    except ValueError:
        summary = None
    if not isinstance(summary, dict) or not {"image_folder", "sources"} <= summary.keys():
        raise PallavaError(f"'{path}' is not the summary of `pallava data clean`")
    return summary
