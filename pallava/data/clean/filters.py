"""What a filter of the cleaning pipeline is: findings that are computed once and stored, and a decision on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pallava.data.sources.base import Pair, Question
from pallava.errors import PallavaError
from pallava.io.hashing import hash_file, hash_text

Findings = dict[str, Any]  # of one filter about one candidate, as JSON holds them
CAPTIONS = frozenset({"captions"})
BOTH_KINDS = frozenset({"captions", "questions"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record with the absolute path of its image, and earlier filters' findings ("sha256", ...) for later ones."""

    record: Pair | Question
    path: Path
    shared: Findings = field(default_factory=dict)
    number: int = 0  # among all candidates, in the records' order

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
    """Why a candidate is dropped, or nothing if it is kept, and the number on which that rests, if any."""

    reason: str = ""  # "few_words", or "near duplicate of quilt-1m:7"; drops are counted by what precedes " of "
    score: float | None = None

    @property
    def keep(self) -> bool:
        """Return whether the candidate is kept."""
        return not self.reason


KEEP = Decision()


class Filter:
    """One question about a candidate. A subclass defines `name` and `decide`, and `score` if that needs findings.

    Findings are stored under ``(key, item_key(candidate))`` and never computed twice.
    """

    name: str  # on the command line
    kinds = BOTH_KINDS  # of records that it looks at
    key = ""
    """Identity of what `score` computes (judge, model, version of the prompt), without any threshold; empty if findings
    cost less than a look into the store."""
    sees_image = False  # whether findings depend on the image, and not on the text
    is_costly = False  # whether each of the findings is stored as soon as it arrives, as those of an endpoint are
    is_ordered = False  # whether decisions depend on earlier candidates: made after judging, in the records' order
    needs_survey = False  # whether it must see every candidate once, in order, before anything is scored
    share = 0  # number of candidates that a worker on another machine takes at a time; 0 keeps them in this process
    loads_model = False  # whether such a worker stays, since it loads a model

    def survey(self, candidate: Candidate) -> None:
        """Take note of a candidate."""

    def item_key(self, candidate: Candidate) -> str:
        """Return what the findings depend on: a hash of the text, or of the image if `sees_image`."""
        return candidate.image_key if self.sees_image else hash_text(candidate.text)

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Compute findings for each candidate, from nothing else."""
        return [{} for _ in candidates]

    def iter_scores(self, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Findings]]:
        """Yield (index into candidates, findings), in any order."""
        yield from enumerate(self.score(candidates))

    def use_cores(self, count: int) -> None:
        """Compute with so many cores, as a worker does that shares its machine with others."""

    def begin(self) -> None:
        """Forget all candidates; called before the first decision."""

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Decide on findings; cheap, and the place of every threshold."""
        raise NotImplementedError

    def close(self) -> None:
        """End the processes that it has started."""


class WordsFilter(Filter):
    """Drop captions with fewer words than a limit; a word is what stands between spaces."""

    name = "words"
    kinds = CAPTIONS

    def __init__(self, min_words: int) -> None:
        if min_words < 0:
            raise PallavaError(f"the minimum number of words must be at least 0, got {min_words}")
        self._min_words = min_words

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        return [{"words": len(each.text.split())} for each in candidates]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        return Decision("" if findings["words"] >= self._min_words else "few_words", findings["words"])
