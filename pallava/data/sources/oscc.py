"""OSCC: microscopy pictures of normal mouth tissue and of oral squamous cell carcinoma.

https://data.mendeley.com/datasets/ftmp4cvtmb (doi:10.1016/j.dib.2020.105114)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pallava.data.sources.base import Labelled, Part, Record, RowDropped, Source
from pallava.data.sources.files import not_found, pick_split
from pallava.io.records import Record as Row

CLASSES = ("normal oral epithelium", "oral squamous cell carcinoma")

_NAME = re.compile(r"(Normal|OSCC)_(100|400)x_\d+\.jpe?g", re.IGNORECASE)
_FOLDER = re.compile(r"(?:100|400)x (Normal|OSCC)\b.*", re.IGNORECASE)
_LOOKED_FOR = "First Set/100x Normal Oral Cavity Histopathological Images/Normal_100x_1.jpg and the like"


class OSCC(Source):
    """Every picture below the root; the label is what its name begins with, and its folder must not contradict it."""

    name = "oscc"
    kind = "classes"

    def _find_parts(self) -> list[Part]:
        if not self.root.is_dir() or not any(_FOLDER.fullmatch(path.parent.name) for path in self._pictures()):
            raise not_found(self.root, self.name, _LOOKED_FOR)
        return pick_split([Part(self.root)], self.split, self.root)

    def _pictures(self) -> Iterator[Path]:
        return (path for path in sorted(self.root.rglob("*")) if _NAME.fullmatch(path.name) and self._is_own(path))

    def _is_own(self, path: Path) -> bool:
        return "__MACOSX" not in path.relative_to(self.root).parts

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        paths = [path for path in sorted(self.root.rglob("*")) if self._is_own(path) and not path.is_dir()]
        for index, path in enumerate(paths):
            yield Row(index, path.relative_to(self.root).as_posix(), path)

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        path: Path = row.value
        match = _NAME.fullmatch(path.name)
        if path.suffix.casefold() == ".zip":
            raise RowDropped(
                "packed", f"an archive; if its folder is missing, unpack it: `pallava data unpack '{path}' ...`"
            )
        if match is None:
            raise RowDropped("unexpected_name", f"{path.name!r} is not named like Normal_100x_1.jpg or OSCC_400x_1.jpg")
        kind = match[1].casefold()
        folder = _FOLDER.fullmatch(path.parent.name)
        if folder and folder[1].casefold() != kind:
            raise RowDropped("label_conflict", f"{path.name!r} lies in {path.parent.name!r}")
        index = int(kind == "oscc")
        metadata = {"index": index, "magnification": int(match[2])}
        return [Labelled(self.name, row.position, row.position, CLASSES[index], metadata)]
