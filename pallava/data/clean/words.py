"""Captions of few words are dropped: they say too little of the picture."""

from __future__ import annotations

from collections.abc import Sequence

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.errors import PallavaError

MIN_WORDS = 20
"""The limit of PA-LLaVA."""


class WordsFilter:
    """Drops captions of fewer words than a limit; a word is what stands between spaces."""

    name = "words"
    kinds = APPLIES_TO["words"]
    key = ""

    def __init__(self, min_words: int = MIN_WORDS) -> None:
        """Takes the limit.

        Raises:
            PallavaError: The limit is below 0.
        """
        if min_words < 0:
            raise PallavaError(f"the least number of words is {min_words}; expected 0 or more")
        self._min_words = min_words

    def item_key(self, item: Item) -> str:
        """The text."""
        return item.text

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Counts words."""
        return [{"words": len(item.text.split())} for item in items]

    def decide(self, item: Item, score: Score) -> Verdict:
        """Compares the count with the limit."""
        is_long = score["words"] >= self._min_words
        return Verdict(is_long, "" if is_long else "few_words", score["words"])
