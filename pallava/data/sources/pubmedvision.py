"""PubMedVision-Alignment: captions of figures from PubMed, one JSON list of 647,031 rows.

https://huggingface.co/datasets/FreedomIntelligence/PubMedVision (arXiv:2406.19280)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pallava.data.sources.base import Pair, Record, Source, SourceFile, register_source
from pallava.data.sources.files import RowDropped, as_object, tidy
from pallava.io.records import Entry

_FOLDERS = ("", "images", "PubMedVision")


@register_source
class PubMedVision(Source):
    """The Alignment file; its caption is the first answer of a row."""

    name = "pubmedvision"
    kind = "captions"
    layout = "PubMedVision_Alignment_VQA.json"

    def find_files(self) -> list[SourceFile]:
        return [SourceFile(path, folders=_FOLDERS) for path in sorted(self.root.glob("*Alignment*.json"))[:1]]

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = as_object(row.value)
        caption = _first_answer(value.get("conversations"))
        if not caption:
            raise RowDropped("empty_caption", "the answer is empty")
        images = _image_names(value.get("image"))
        extra = {key: value[key] for key in ("body_part", "modality") if isinstance(value.get(key), str)}
        metadata = {"row_id": str(value.get("id", "")), **extra, "num_images": len(images)}
        row_id = f"{row.index:07d}"
        return [Pair(self.name, i, image, caption, metadata) for i, image in self.each_image(row_id, images)]


def _first_answer(conversations: Any) -> str:
    if not isinstance(conversations, list):
        raise RowDropped("malformed", f"'conversations' must be a list, got {type(conversations).__name__}")
    for turn in conversations:
        if isinstance(turn, dict) and turn.get("from") == "gpt" and isinstance(turn.get("value"), str):
            return tidy(turn["value"])
    raise RowDropped("malformed", "no turn of the conversation comes from 'gpt'")


def _image_names(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RowDropped("malformed", f"'image' must be a list of names, got {value!r:.80}")
    if not names:
        raise RowDropped("malformed", "'image' is an empty list")
    return names
