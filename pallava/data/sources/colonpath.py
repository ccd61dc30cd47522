"""ColonPath: patches of colon slides with or without tumour, a part of MedFMC.

https://github.com/openmedlab/MedFM (arXiv:2306.09579)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pallava.data.sources.base import Labelled, Part, Record, RowDropped, Source
from pallava.data.sources.files import csv_rows, not_found, pick_split, tidy
from pallava.errors import PallavaError
from pallava.io.records import Record as Row

CLASSES = ("normal", "tumor")

_FOLDERS = ("colon/images", "colon/image", "images", "image", "colon", "")
_SUBFOLDERS = ("", "colon")


class ColonPath(Source):
    """A CSV file, else a list; of several the split picks one by its name without "colon_" and ending.

    Files without labels, such as the challenge's test_WithoutLabel.txt, give dropped rows alone.
    """

    name = "colonpath"
    kind = "classes"

    def _find_parts(self) -> list[Part]:
        for pattern in ("colon_*.csv", "*.txt"):
            paths = sorted(path for folder in _SUBFOLDERS for path in (self.root / folder).glob(pattern))
            parts = [Part(path, path.stem.removeprefix("colon_"), _FOLDERS) for path in paths]
            if len(parts) > 1 and self.split is None:
                splits = ", ".join(part.split for part in parts)
                raise PallavaError(f"'{self.root}' has several lists, which may overlap; name a split: {splits}")
            if parts:
                return pick_split(parts, self.split, self.root)
        raise not_found(self.root, self.name, "colon_train.csv or lists like train.txt, in it or in colon/")

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        if part.path.suffix == ".csv":
            return csv_rows(part.path, self._progress, columns=("img_id",))
        return self._list_rows(part.path)

    def _list_rows(self, path: Path) -> Iterator[Row | RowDropped]:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for index, line in enumerate(lines):
            name, _, label = line.strip().rpartition(" ")  # a name holds a space, a label none
            if line.strip():
                yield Row(index, f"line {index + 1}", {"img_id": name, "tumor": label})

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        image, label = tidy(row.value["img_id"]), tidy(row.value.get("tumor", ""))
        if not image:
            raise RowDropped("empty_name", "the row has no img_id")
        if label not in ("0", "1", "0.0", "1.0"):
            raise RowDropped("bad_label", f"the label of {image!r} is {label!r}, not 0 or 1")
        name = image if PurePosixPath(image).suffix.casefold() in (".png", ".jpg", ".jpeg", ".tif") else f"{image}.png"
        index = int(float(label))
        row_id = f"{part.split}-{row.index:05d}"
        return [Labelled(self.name, row_id, name, CLASSES[index], {"index": index, "split": part.split})]
