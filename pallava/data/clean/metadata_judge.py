"""What a source itself says about its images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict

_MICROSCOPY = ("microscop", "histo", "patholog", "cytolog")
_YES = {"1", "1.0", "true", "yes"}


class PathologyMetadata:
    """Filter "pathology" by metadata: PubMedVision's `modality`, Quilt-1M's `not_histology`.

    A modality that is not microscopy, and a row that is marked as no histology, are dropped; where nothing is known, as
    in older copies of both sets and in all others, the image is kept.
    """

    name = "pathology"
    kinds = APPLIES_TO["pathology"]
    key = "pathology-metadata-1"

    def item_key(self, item: Item) -> str:
        """Names the two fields."""
        return hashlib.sha256(json.dumps(_fields(item), sort_keys=True, default=str).encode()).hexdigest()

    def score(self, items: Sequence[Item]) -> list[Score]:
        """``{"modality": text or None, "not_histology": bool or None}``; None: the source says nothing."""
        return [_fields(item) for item in items]

    def decide(self, item: Item, score: Score) -> Verdict:
        """Drops what is known to be no pathology."""
        if score["not_histology"]:
            return Verdict(False, "not_histology")
        modality = score["modality"]
        if modality is not None and not any(part in modality.lower() for part in _MICROSCOPY):
            return Verdict(False, "not_microscopy")
        return Verdict(True)


def _fields(item: Item) -> Score:
    metadata: dict[str, Any] = item.record.metadata
    modality, flag = metadata.get("modality"), metadata.get("not_histology")
    modality = str(modality).strip() if modality is not None else ""
    flag = str(flag).strip().lower() if flag is not None else ""
    return {"modality": modality or None, "not_histology": flag in _YES if flag else None}
