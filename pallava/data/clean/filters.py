"""What a filter of the cleaning pipeline is: findings that are computed once and stored, and a decision on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pallava.data.sources.base import Pair, Question
from pallava.errors import PallavaError
from pallava.io.hashing import hash_file, hash_text

Findings = dict[str, Any]
"""What a filter found out about one candidate, as JSON holds it."""

CAPTIONS = frozenset({"captions"})
BOTH_KINDS = frozenset({"captions", "questions"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record on its way through the filters.

    Attributes:
        record: The record.
        path: Absolute path of its image.
        shared: Findings of earlier filters ("sha256", "width", ...), for later ones to read.
    """

    record: Pair | Question
    path: Path
    shared: Findings = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return "captions" or "questions"."""
        return "captions" if isinstance(self.record, Pair) else "questions"

    @property
    def text(self) -> str:
        """Return the caption, or the question with its options, one a line."""
        if isinstance(self.record, Pair):
            return self.record.text
        return "\n".join([self.record.question, *self.record.options])

    @property
    def text_key(self) -> str:
        """Return a hash of the text."""
        return hash_text(self.text)

    @property
    def image_key(self) -> str:
        """Return a hash of the image file, from the image filter's findings where that ran before.

        Raises:
            PallavaError: The file cannot be read.
        """
        if found := self.shared.get("sha256"):
            return str(found)
        try:
            return hash_file(self.path)
        except OSError as error:
            raise PallavaError(
                f"cannot read image '{self.path}': {error.strerror}; put the filter 'image' first, which drops it"
            ) from None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a candidate is kept.

    Attributes:
        keep: Kept, or dropped.
        reason: Why it is dropped, such as "few_words", or "near duplicate of quilt-1m:7"; drops are counted by what
            precedes " of ". Empty if it is kept.
        score: The number that the decision rests on, if any.
    """

    keep: bool
    reason: str = ""
    score: float | None = None


KEEP = Decision(True)


@runtime_checkable
class Filter(Protocol):
    """One question about a candidate; its findings are stored under ``(key, item_key(candidate))``."""

    name: str
    """Name on the command line."""
    kinds: frozenset[str]
    """Kinds of records that it looks at: "captions", "questions"."""
    key: str
    """Identity of what `score` computes (judge, model, version of the prompt), without any threshold; empty where
    findings cost less than a look into the store."""

    def item_key(self, candidate: Candidate) -> str:
        """Return what the findings depend on, such as a hash of the caption or of the image."""

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Compute findings for each candidate, from nothing else."""

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Decide on findings; cheap, and the place of every threshold."""


@runtime_checkable
class OrderedFilter(Filter, Protocol):
    """A filter whose decisions depend on earlier candidates: it decides in the order of the records, after judging."""

    def begin(self) -> None:
        """Forget all candidates; called before the first decision."""


@runtime_checkable
class StreamingFilter(Filter, Protocol):
    """A filter whose findings cost so much that each is stored as soon as it arrives, as those of an endpoint do."""

    def iter_scores(self, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Findings]]:
        """Yield (index into candidates, findings), in any order."""


@runtime_checkable
class SurveyFilter(Filter, Protocol):
    """A filter that sees every candidate once, in order, before anything is scored or decided."""

    def survey(self, candidate: Candidate) -> None:
        """Take note of a candidate."""
