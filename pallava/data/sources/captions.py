"""Sets of pictures with captions: PubMedVision-Alignment, PMC-OA and Quilt-1M."""

import ast
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pallava.data.sources.base import Pair, Record, Source, SourceFile, register_source
from pallava.data.sources.files import RowDropped, as_object, image_and_caption, texts_of, tidy
from pallava.io.records import Entry

_OA_FILES = ("pmc_oa.jsonl", "pmc_oa_beta.jsonl")
_OA_OLD_FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")
_OA_SUBFIGURES = "caption_T060_filtered_top4_sep_v0_subfigures"
_OA_FOLDERS = (_OA_SUBFIGURES, "images", f"{_OA_SUBFIGURES}/{_OA_SUBFIGURES}", f"images/{_OA_SUBFIGURES}", "")

_QUILT_FOLDERS = ("quilt_1m", "quilt_1M", "images", "quilt_1m/quilt_1m", "")
_QUILT_WORDS = ("subset", "split", "magnification", "height", "width", "single_wsi")
_QUILT_LITERALS = ("pathology", "roi_text", "med_umls_ids")
_MAX_LITERAL = 1 << 16  # the compiler takes a hundred times the text's size


@register_source
class PubMedVision(Source):
    """Figures from PubMed, one JSON list of 647,031 rows; the caption is the first answer of a row.

    https://huggingface.co/datasets/FreedomIntelligence/PubMedVision (arXiv:2406.19280)
    """

    name = "pubmedvision"
    kind = "captions"
    layout = "PubMedVision_Alignment_VQA.json"

    def find_files(self) -> list[SourceFile]:
        paths = sorted(self.root.glob("*Alignment*.json"))[:1]
        return [SourceFile(path, folders=("", "images", "PubMedVision")) for path in paths]

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = as_object(row.value)
        caption = _first_answer(value.get("conversations"))
        if not caption:
            raise RowDropped("empty_caption", "the answer is empty")
        images = value.get("image")
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not images or not all(isinstance(name, str) for name in images):
            raise RowDropped("malformed", f"'image' must be a list of names, got {images!r:.80}")
        metadata = {"row_id": str(value.get("id", "")), **texts_of(value, "body_part", "modality")}
        metadata["num_images"] = len(images)
        row_id = f"{row.index:07d}"
        return [Pair(self.name, i, image, caption, metadata) for i, image in self.each_image(row_id, images)]


def _first_answer(conversations: Any) -> str:
    if not isinstance(conversations, list):
        raise RowDropped("malformed", f"'conversations' must be a list, got {type(conversations).__name__}")
    for turn in conversations:
        if isinstance(turn, dict) and turn.get("from") == "gpt" and isinstance(turn.get("value"), str):
            return tidy(turn["value"])
    raise RowDropped("malformed", "no turn of the conversation comes from 'gpt'")


@register_source
class PMCOA(Source):
    """Sub-figures of open-access articles, one JSON object a line.

    The final file, else the beta one, else the three of the old release, which alone has splits.
    https://huggingface.co/datasets/axiong/pmc_oa (arXiv:2303.07240)
    """

    name = "pmc-oa"
    kind = "captions"
    layout = f"{', '.join(_OA_FILES)} or {', '.join(_OA_OLD_FILES)}"

    def find_files(self) -> list[SourceFile]:
        for name in _OA_FILES:
            if (self.root / name).is_file():
                return [SourceFile(self.root / name, folders=_OA_FOLDERS)]
        self.split = "valid" if self.split == "val" else self.split
        old = [SourceFile(self.root / name, name.removesuffix(".jsonl"), _OA_FOLDERS) for name in _OA_OLD_FILES]
        return [file for file in old if file.path.is_file()]

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = as_object(row.value)
        row_id = f"{file.split}-{row.index:07d}".removeprefix("-")
        return [Pair(self.name, row_id, *image_and_caption(value), texts_of(value, "pmcid", "url_name"))]


@register_source
class Quilt1M(Source):
    """Pictures from histopathology videos and other places, one CSV of 1,017,712 rows with a column of the split.

    https://github.com/wisdomikezogwo/quilt1m (arXiv:2306.11207)
    """

    name = "quilt-1m"
    kind = "captions"
    layout = "quilt_1M_lookup.csv"

    def find_files(self) -> list[SourceFile]:
        self.needs = ("caption", "image_path", *(["split"] if self.split else []))
        paths = sorted(self.root.glob("quilt_1[mM]_lookup*.csv"))[:1]
        return [SourceFile(path, self.split or "", _QUILT_FOLDERS) for path in paths]  # it holds all splits

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = row.value
        if self.split is not None and value.get("split") != self.split:
            raise RowDropped("other_split", f"its split is {value.get('split')!r}")
        if _number(value.get("not_histology", "")) == 1:
            raise RowDropped("not_histology", f"{value['image_path']!r} is marked as not histology")
        image, caption = image_and_caption(value, "image_path")
        words = {key: _number(value[key]) for key in _QUILT_WORDS if value.get(key)}
        lists = {key: parse_literal(value[key]) for key in _QUILT_LITERALS if value.get(key)}
        return [Pair(self.name, f"{row.index:07d}", image, caption, words | lists)]


@lru_cache(maxsize=4096)
def parse_literal(text: str) -> Any:
    """Parse a list of texts and numbers that is written as a Python literal; return any other text as it is."""
    if len(text) > _MAX_LITERAL:
        return text
    try:
        value = _literal(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    if not isinstance(value, list):
        return text
    parts = (part for each in value for part in (each if isinstance(each, list) else [each]))
    is_plain = all(isinstance(part, str | int) or (isinstance(part, float) and math.isfinite(part)) for part in parts)
    return value if is_plain else text  # JSON has no other numbers


def _literal(text: str) -> Any:
    if '"' not in text and "\\" not in text:  # then its quotes alone keep it from being JSON, which is read much faster
        with suppress(ValueError):
            return json.loads(text.replace("'", '"'))
    return ast.literal_eval(text)


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if number.is_integer() else number
