"""PMC-OA: sub-figures of open-access articles with captions, one JSON object a line.

https://huggingface.co/datasets/axiong/pmc_oa (arXiv:2303.07240)
"""

from __future__ import annotations

from collections.abc import Sequence

from pallava.data.sources.base import Pair, Record, Source, SourceFile, register_source
from pallava.data.sources.files import as_object, image_and_caption
from pallava.io.records import Entry

_FILES = ("pmc_oa.jsonl", "pmc_oa_beta.jsonl")
_OLD_FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")
_SUBFIGURES = "caption_T060_filtered_top4_sep_v0_subfigures"
_FOLDERS = (_SUBFIGURES, "images", f"{_SUBFIGURES}/{_SUBFIGURES}", f"images/{_SUBFIGURES}", "")


@register_source
class PMCOA(Source):
    """The final file, else the beta one, else the three of the old release, which alone has splits."""

    name = "pmc-oa"
    kind = "captions"
    layout = f"{', '.join(_FILES)} or {', '.join(_OLD_FILES)}"

    def find_files(self) -> list[SourceFile]:
        for name in _FILES:
            if (self.root / name).is_file():
                return [SourceFile(self.root / name, folders=_FOLDERS)]
        self.split = "valid" if self.split == "val" else self.split
        old = [SourceFile(self.root / name, name.removesuffix(".jsonl"), _FOLDERS) for name in _OLD_FILES]
        return [file for file in old if file.path.is_file()]

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = as_object(row.value)
        image, caption = image_and_caption(value)
        row_id = f"{file.split}-{row.index:07d}".removeprefix("-")
        metadata = {key: value[key] for key in ("pmcid", "url_name") if isinstance(value.get(key), str)}
        return [Pair(self.name, row_id, image, caption, metadata)]
