"""BACH: 400 microscopy pictures of breast tissue in four classes.

https://zenodo.org/records/3632035 (arXiv:1808.04277)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pallava.data.sources.base import Labelled, Part, Record, RowDropped, Source
from pallava.data.sources.files import headless_csv_rows, not_found, pick_split, tidy
from pallava.io.records import Record as Row

CLASSES = ("Normal", "Benign", "InSitu", "Invasive")

_TABLE = "microscopy_ground_truth.csv"
_NAME = re.compile(r"(n|b|is|iv)\d{3}\.tif")


class BACH(Source):
    """The pictures below Photos/, class by class; the folder is the label, and the table must not contradict it."""

    name = "bach"
    kind = "classes"

    def _find_parts(self) -> list[Part]:
        for photos in (self.root / "Photos", self.root):
            if parts := [Part(photos / name) for name in CLASSES if (photos / name).is_dir()]:
                self._labels = _table(photos / _TABLE)
                return pick_split(parts, self.split, self.root)
        looked_for = f"Photos/ with the folders {', '.join(CLASSES)}"
        raise not_found(self.root, self.name, looked_for)

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        for index, path in enumerate(sorted(part.path.iterdir())):
            yield Row(index, path.name, path)

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        path: Path = row.value
        if not _NAME.fullmatch(path.name):
            raise RowDropped(
                "unexpected_name", f"{path.name!r} is not named like n001.tif, b001.tif, is001.tif, iv001.tif"
            )
        label = part.path.name
        stated = self._labels.get(path.name, label)
        if stated != label:
            raise RowDropped("label_conflict", f"{path.name!r} lies in {label}, but is {stated} in {_TABLE}")
        image = path.relative_to(self.root).as_posix()
        return [Labelled(self.name, path.stem, image, label, {"index": CLASSES.index(label)})]


def _table(path: Path) -> dict[str, str]:
    """Gives the label of each name in the table; nothing where there is no table."""
    if not path.is_file():
        return {}
    rows = [row.value for row in headless_csv_rows(path) if isinstance(row, Row)]
    return {tidy(row[0]): tidy(row[1]) for row in rows if len(row) >= 2}
