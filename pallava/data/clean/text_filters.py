"""Filters that read no image: the number of words of a caption, and what a source says about its images."""

from __future__ import annotations

from collections.abc import Sequence

from pallava.data.clean.filters import CAPTIONS, KEEP, Candidate, Decision, Filter, Findings
from pallava.errors import PallavaError
from pallava.io.hashing import hash_json

_MICROSCOPY = ("microscop", "histo", "patholog", "cytolog")
_YES = {"1", "1.0", "true", "yes"}


class WordsFilter(Filter):
    """Drop captions with fewer words than a limit; a word is what stands between spaces."""

    name = "words"
    kinds = CAPTIONS

    def __init__(self, min_words: int) -> None:
        if min_words < 0:
            raise PallavaError(f"the minimum number of words must be at least 0, got {min_words}")
        self._min_words = min_words

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Count words."""
        return [{"words": len(each.text.split())} for each in candidates]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Compare the count with the limit."""
        is_long = findings["words"] >= self._min_words
        return Decision(is_long, "" if is_long else "few_words", findings["words"])


class PathologyMetadata(Filter):
    """Filter "pathology" by metadata: PubMedVision's `modality`, Quilt-1M's `not_histology`.

    A modality other than microscopy, and a row marked as not histology, are dropped; where nothing is known, as in
    older copies of both sets and in all others, the image is kept.
    """

    name = "pathology"
    key = "pathology-metadata-1"

    def item_key(self, candidate: Candidate) -> str:
        """Return a key of the two fields."""
        return hash_json(_fields(candidate))

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Return ``{"modality": text or None, "not_histology": bool or None}``; None if the source does not say."""
        return [_fields(each) for each in candidates]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Drop what is known not to be pathology."""
        if findings["not_histology"]:
            return Decision(False, "not_histology")
        modality = findings["modality"]
        if modality is not None and not any(part in modality.lower() for part in _MICROSCOPY):
            return Decision(False, "not_microscopy")
        return KEEP


def _fields(candidate: Candidate) -> Findings:
    modality, flag = (candidate.record.metadata.get(name) for name in ("modality", "not_histology"))
    modality = str(modality).strip() if modality is not None else ""
    flag = str(flag).strip().lower() if flag is not None else ""
    return {"modality": modality or None, "not_histology": flag in _YES if flag else None}
