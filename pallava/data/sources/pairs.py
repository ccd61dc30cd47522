"""Pairs of any origin: a JSON list or JSONL of ``{"image", "caption"}``, image names relative to the file's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pallava.data.sources.base import Pair, Part, Record, RowDropped, Source
from pallava.data.sources.files import as_object, image_and_caption, json_rows, not_found, pick_split
from pallava.errors import PallavaError
from pallava.io.records import Record as Row


class Pairs(Source):
    """A file of pairs, or a folder with one; of several files the split picks one by its name without ending."""

    name = "pairs"
    kind = "captions"

    def _find_parts(self) -> list[Part]:
        if self.root.is_file():
            path, self.root = self.root, self.root.parent
            return pick_split([_part(path)], self.split, path)
        parts = [_part(path) for path in sorted(self.root.glob("*.json*")) if path.suffix in (".json", ".jsonl")]
        if not parts:
            raise not_found(self.root, self.name, 'a .json or .jsonl file of {"image", "caption"}')
        if len(parts) > 1 and self.split is None:
            names = ", ".join(part.path.name for part in parts)
            raise PallavaError(f"'{self.root}' holds several files of pairs ({names}); give the path of one")
        return pick_split(parts, self.split, self.root)

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        return json_rows(part.path, self._progress)

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        value = as_object(row.value)
        image, caption = image_and_caption(value)
        return [Pair(self.name, f"{row.index:07d}", image, caption)]


def _part(path: Path) -> Part:
    return Part(path, path.stem, ("", "images"))
