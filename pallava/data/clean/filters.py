"""What a filter of the cleaning pipeline is: a score that is computed once and stored, and a decision on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pallava.data.sources.base import Labelled, Pair, Question, Record

Score = dict[str, Any]
"""The findings of a filter about one item, as JSON holds them."""

_BOTH = frozenset({"captions", "questions"})
APPLIES_TO: dict[str, frozenset[str]] = {
    "published-index": frozenset({"captions"}),
    "words": frozenset({"captions"}),
    "image": _BOTH,
    "pathology": _BOTH,
    "species": _BOTH,
    "duplicates": _BOTH,
}
"""The filters, and the kinds of records that each looks at."""


@dataclass(frozen=True, slots=True)
class Item:
    """A record on its way through the filters.

    Attributes:
        record: The record.
        path: Absolute path of its image.
        shared: What the scores of earlier filters hold ("sha256", "width", ...), for later ones to read.
    """

    record: Record
    path: Path
    shared: Score = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The record's kind: "captions", "questions" or "classes"."""
        if isinstance(self.record, Pair):
            return "captions"
        return "questions" if isinstance(self.record, Question) else "classes"

    @property
    def text(self) -> str:
        """The caption; the question with its options, one a line; the label."""
        if isinstance(self.record, Pair):
            return self.record.text
        if isinstance(self.record, Labelled):
            return self.record.label
        return "\n".join([self.record.question, *self.record.options])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an item is kept.

    Attributes:
        keep: Kept, or dropped.
        reason: Why it is dropped, such as "few_words", or "near duplicate of quilt-1m:7": what stands before " of " is
            what drops are counted by. An item is kept without a reason.
        score: The number that the decision rests on, where there is one.
    """

    keep: bool
    reason: str = ""
    score: float | None = None


@runtime_checkable
class Filter(Protocol):
    """One question about an item. Its scores are stored under ``(key, item_key(item))`` and never computed twice."""

    name: str
    """Short name, as on the command line."""
    kinds: frozenset[str]
    """To which of "captions", "questions" it applies."""
    key: str
    """Identity of what `score` computes (judge, model, version of the prompt), without any threshold; nothing where
    the score is not worth storing, since it costs less than to look it up."""

    def item_key(self, item: Item) -> str:
        """Names what the score depends on, such as a hash of the caption or of the image."""

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Computes a score for each item; depends on nothing but the items."""

    def decide(self, item: Item, score: Score) -> Verdict:
        """Decides on a score; cheap, and the place of every threshold."""


@runtime_checkable
class OrderedFilter(Filter, Protocol):
    """A filter whose decisions depend on earlier items: it is asked in the order of the records, after judging."""

    def begin(self) -> None:
        """Forgets all items; called before the first decision."""


@runtime_checkable
class StreamingFilter(Filter, Protocol):
    """A filter whose scores cost so much that each is stored as soon as it is there, as those of an endpoint do."""

    def iter_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, Score]]:
        """Yields (index into items, score) of each item, in any order."""


@runtime_checkable
class SurveyFilter(Filter, Protocol):
    """A filter that looks at every item once, in order, before anything is scored or decided."""

    def survey(self, item: Item) -> None:
        """Takes note of an item."""
