"""Quilt-1M: pictures from histopathology videos and other places, one CSV of 1,017,712 rows.

https://github.com/wisdomikezogwo/quilt1m (arXiv:2306.11207)
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from pallava.data.sources.base import Pair, Record, Source, SourceFile, register_source
from pallava.data.sources.files import RowDropped, tidy
from pallava.io.records import Entry

_FOLDERS = ("quilt_1m", "quilt_1M", "images", "quilt_1m/quilt_1m", "")
_WORDS = ("subset", "split", "magnification", "height", "width", "single_wsi")
_LITERALS = ("pathology", "roi_text", "med_umls_ids")
_MAX_LITERAL = 1 << 16  # the compiler takes a hundred times the text's size


@register_source
class Quilt1M(Source):
    """The lookup table; the split is its column of that name."""

    name = "quilt-1m"
    kind = "captions"
    layout = "quilt_1M_lookup.csv"

    def find_files(self) -> list[SourceFile]:
        self.needs = ("caption", "image_path", *(["split"] if self.split else []))
        paths = sorted(self.root.glob("quilt_1[mM]_lookup*.csv"))[:1]
        return [SourceFile(path, self.split or "", _FOLDERS) for path in paths]  # it holds all splits

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = row.value
        if self.split is not None and value.get("split") != self.split:
            raise RowDropped("other_split", f"its split is {value.get('split')!r}")
        if _number(value.get("not_histology", "")) == 1:
            raise RowDropped("not_histology", f"{value['image_path']!r} is marked as not histology")
        caption = tidy(value["caption"])
        if not caption:
            raise RowDropped("empty_caption", f"the caption of {value['image_path']!r} is empty")
        words = {key: _number(value[key]) for key in _WORDS if value.get(key)}
        lists = {key: parse_literal(value[key]) for key in _LITERALS if value.get(key)}
        return [Pair(self.name, f"{row.index:07d}", tidy(value["image_path"]), caption, words | lists)]


@lru_cache(maxsize=4096)
def parse_literal(text: str) -> Any:
    """Parse a list of texts and numbers that is written as a Python literal; return any other text as it is."""
    if len(text) > _MAX_LITERAL:
        return text
    try:
        value = _literal(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, list) and all(map(_is_plain, _flat(value))) else text


def _literal(text: str) -> Any:
    if '"' not in text and "\\" not in text:  # then its quotes alone keep it from being JSON, which is read much faster
        try:
            return json.loads(text.replace("'", '"'))
        except ValueError:
            pass
    return ast.literal_eval(text)


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))  # as JSON holds it


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text  # JSON has no such numbers
    return int(number) if number.is_integer() else number
