"""PMC-OA: sub-figures of open-access articles with captions, one JSON object a line.

https://huggingface.co/datasets/axiong/pmc_oa (arXiv:2303.07240)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pallava.data.sources.base import Pair, Part, Record, RowDropped, Source
from pallava.data.sources.files import as_object, image_and_caption, json_rows, not_found, pick_split
from pallava.io.records import Record as Row

_FILES = ("pmc_oa.jsonl", "pmc_oa_beta.jsonl")
_OLD_FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")
_SUBFIGURES = "caption_T060_filtered_top4_sep_v0_subfigures"
_FOLDERS = (_SUBFIGURES, "images", f"{_SUBFIGURES}/{_SUBFIGURES}", f"images/{_SUBFIGURES}", "")


class PMCOA(Source):
    """The final file, else the beta one, else the three of the old release, which alone has splits."""

    name = "pmc-oa"
    kind = "captions"

    def _find_parts(self) -> list[Part]:
        for name in _FILES:
            if (self.root / name).is_file():
                return pick_split([Part(self.root / name, folders=_FOLDERS)], self.split, self.root)
        old = [Part(self.root / name, name.removesuffix(".jsonl"), _FOLDERS) for name in _OLD_FILES]
        parts = [part for part in old if part.path.is_file()]
        if not parts:
            raise not_found(self.root, self.name, f"{', '.join(_FILES)} or {', '.join(_OLD_FILES)}")
        return pick_split(parts, "valid" if self.split == "val" else self.split, self.root)

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        return json_rows(part.path, self._progress)

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        value = as_object(row.value)
        image, caption = image_and_caption(value)
        row_id = f"{part.split}-{row.index:07d}".removeprefix("-")
        metadata = {key: value[key] for key in ("pmcid", "url_name") if isinstance(value.get(key), str)}
        return [Pair(self.name, row_id, image, caption, metadata)]
