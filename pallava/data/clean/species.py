"""Human or not, by the words of a caption and nothing else.

The paper asked a language model. These rules ask none: each word that names an animal is marked, phrases that name one
and mean none (the host of an antibody, "owl eye", a patient bitten by a dog) are taken away, and what is left decides.

A caption without a species is human, as most are. One that shows human and other material ("human and mouse islets"), a
tumour of man grown in an animal, and cells of an animal are non-human: such a picture is not one of human tissue alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.clean.item_keys import text_key
from pallava.data.clean.species_terms import (
    ANIMALS,
    CAPITALS_MEAN_OTHERWISE,
    COMPOUNDS,
    CONTACT,
    EVIDENCE,
    HARMLESS,
    HUMAN_SUBJECT,
    MOUSE_GENOTYPE,
)

Species = Literal["human", "non-human"]

_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | {"’": "'", "‘": "'", "§": " "})
_WORD = re.compile(r"[A-Za-z]+")
_MARKED = re.compile(r"§(\w+)")
_COMPOUNDS = tuple((re.compile(rf"\b{pattern}", re.IGNORECASE), word) for pattern, word in COMPOUNDS)


def judge_species(caption: str) -> Species:
    """Tells whether a caption speaks of human material alone.

    Args:
        caption: The text of a picture; no mention of a species means human.
    """
    return "human" if find_species(caption) is None else "non-human"


def find_species(caption: str) -> str | None:
    """Finds the words that make a caption non-human, such as "mice"; None where there are none."""
    text = unicodedata.normalize("NFKC", caption).translate(_DASHES)
    if genotype := MOUSE_GENOTYPE.search(text):
        return genotype.group()
    marked = _mark_animals(text)
    if "§" in marked and (animal := _MARKED.search(_without_harmless(marked))):
        return animal.group(1)
    evidence = EVIDENCE.search(text.lower())
    return evidence.group() if evidence else None


def _mark_animals(text: str) -> str:
    """Lower case, with § before each word that names an animal."""
    for pattern, word in _COMPOUNDS:
        text = pattern.sub(word, text)
    return _WORD.sub(_mark, text).lower()


def _mark(match: re.Match[str]) -> str:
    word = match.group()
    is_animal = word.lower() in ANIMALS and word not in CAPITALS_MEAN_OTHERWISE and word != "Turkey"
    return f"§{word}" if is_animal else word


def _without_harmless(marked: str) -> str:
    for pattern in HARMLESS:
        marked = pattern.sub(" ", marked)
    return CONTACT.sub(" ", marked) if HUMAN_SUBJECT.search(marked) else marked


class SpeciesRules:
    """Filter "species" by `judge_species`; the score names the words that decided."""

    name = "species"
    kinds = APPLIES_TO["species"]
    key = "species-rules-1"

    def item_key(self, item: Item) -> str:
        """Names the text."""
        return text_key(item)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """``{"species": "human" | "non-human", "found": words}``."""
        found = [find_species(item.text) for item in items]
        return [{"species": "human" if words is None else "non-human", "found": words or ""} for words in found]

    def decide(self, item: Item, score: Score) -> Verdict:
        """Drops non-human material."""
        return Verdict(True) if score["species"] == "human" else Verdict(False, "non_human")
