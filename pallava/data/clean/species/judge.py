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
from pallava.data.clean.species.antibodies import LISTED_HOSTS, SPEAKS_OF_ANTIBODIES
from pallava.data.clean.species.evidence import (
    CULTURES,
    EVIDENCE,
    GENOTYPES,
    GRAFT_MATERIAL,
    KNOCKOUTS,
    NECROPSY,
    TUMOURS,
    XENOGRAFTS,
)
from pallava.data.clean.species.phrases import BESIDE_A_PERSON, HARMLESS, HUMAN_SUBJECT
from pallava.data.clean.species.terms import (
    ANIMALS,
    COMPOUNDS,
    NEEDS_TISSUE,
    NEVER,
    PLACES,
    SURFACES,
    TISSUES,
    UNCERTAIN,
)

Species = Literal["human", "non-human"]

_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | {"’": "'", "‘": "'", "§": " "})
_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]+(?!-?\d|[A-Za-z])")
_MARKED = re.compile(r"§(\w+)")
_SENTENCE_END = re.compile(r"(?<=\.)\s+")
_REACH = 60  # characters to either side in which a tissue says that a word is an animal

_ARTICLE = r"(?:an?|the|two|three|wild|adult|young|juvenile|captive|stranded|healthy|normal|infected|male|female)"
_ADJECTIVE = r"(?:(?!(?:in|on|of|to|and|or|with|from|for|the|an?|syndrome|genes?|scan|activity)\b)\w+\s+)?"
_BEFORE_TISSUE = re.compile(rf"(?:'s?|s')?\s+{_ADJECTIVE}{TISSUES}\b", re.IGNORECASE)
_BEFORE_ANY_TISSUE = re.compile(rf"(?:'s?|s')?[,:]?\s+{_ADJECTIVE}(?:{TISSUES}|{SURFACES})\b(?! scan)", re.IGNORECASE)
_AFTER_TISSUE = re.compile(rf"\b{TISSUES}(?: \w+)? (?:of|from|in) (?:{_ARTICLE} ){{0,2}}$", re.IGNORECASE)
_AFTER_ANY_TISSUE = re.compile(
    rf"\b(?:{TISSUES}|{SURFACES})(?: \w+)? (?:of|from|in) (?:{_ARTICLE} ){{0,2}}$", re.IGNORECASE
)
_STARTS_A_NOUN = re.compile(rf"(?:^|[.,;:()]\s*|\b(?:of|from|in|and|{_ARTICLE})\s+)$", re.IGNORECASE)
_FOUND_IN = re.compile(r"\b(?:in|from|of) an? (?:[\w-]+ )?$", re.IGNORECASE)
_STANDS_ALONE = re.compile(r"\s*(?:$|[.,;:()]|\b(?:with|infected|showing|that|and|at|after|stained)\b)", re.IGNORECASE)
_STARTS_A_SENTENCE = re.compile(r"(?:^|[.:]\s*)$")
_IS_ILL = re.compile(r"\s+(?:naturally |experimentally )?(?:with|infected)\b")


def judge_species(caption: str) -> Species:
    """Tells whether a caption speaks of human material alone.

    Args:
        caption: The text of a picture; no mention of a species means human.
    """
    return "human" if find_species(caption) is None else "non-human"


def find_species(caption: str) -> str | None:
    """Finds the words that make a caption non-human, such as "mice"; None where there are none."""
    text = unicodedata.normalize("NFKC", caption).translate(_DASHES)
    marked = _without_harmless(_mark_animals(text))
    if animal := _MARKED.search(marked):
        return animal.group(1)
    return _find_evidence(text)


def _find_evidence(text: str) -> str | None:
    """Finds strains, genotypes, methods and the like that mean an animal without naming it."""
    lower = text.lower()
    found = GENOTYPES.search(text) or EVIDENCE.search(lower) or _find_xenograft(text)
    if not found and not CULTURES.search(text):
        found = KNOCKOUTS.search(text)
    if not found and not HUMAN_SUBJECT.search(lower):
        found = NECROPSY.search(lower)
    return found.group() if found else None


def _find_xenograft(text: str) -> re.Match[str] | None:
    lower = text.lower()
    is_material = GRAFT_MATERIAL.search(lower) and not TUMOURS.search(lower)
    return None if is_material else XENOGRAFTS.search(text)


def _mark_animals(text: str) -> str:
    """Lower case, with § before each word that names an animal."""
    for pattern, word in COMPOUNDS:
        text = pattern.sub(word, text)
    return _WORD.sub(_mark, text).lower()


def _mark(match: re.Match[str]) -> str:
    return f"§{match.group()}" if _is_animal(match) else match.group()


def _is_animal(match: re.Match[str]) -> bool:
    word = match.group()
    if word in NEEDS_TISSUE:
        return _is_beside_tissue(match, _BEFORE_ANY_TISSUE, _AFTER_ANY_TISSUE)
    if word.lower() in UNCERTAIN or word in PLACES:
        return _is_uncertain_animal(match)
    return word.lower() in ANIMALS and word not in NEVER


def _is_uncertain_animal(match: re.Match[str]) -> bool:
    before, after = _around(match)
    is_calf = match.group().lower().startswith("cal")  # of a leg, or of a cow
    if _STARTS_A_SENTENCE.search(before) and _IS_ILL.match(after):
        return True
    if not is_calf and _FOUND_IN.search(before) and _STANDS_ALONE.match(after):
        return True
    precedes = _AFTER_TISSUE if is_calf else _AFTER_ANY_TISSUE
    return bool(_STARTS_A_NOUN.search(before)) and _is_beside_tissue(match, _BEFORE_TISSUE, precedes)


def _is_beside_tissue(match: re.Match[str], follows: re.Pattern[str], precedes: re.Pattern[str]) -> bool:
    before, after = _around(match)
    return bool(follows.match(after) or precedes.search(before))


def _around(match: re.Match[str]) -> tuple[str, str]:
    text, start, end = match.string, match.start(), match.end()
    return text[max(0, start - _REACH) : start], text[end : end + _REACH]


def _without_harmless(marked: str) -> str:
    if "§" not in marked:
        return marked
    marked = " ".join(map(_without_listed_hosts, _SENTENCE_END.split(marked)))
    marked = _without(HARMLESS, marked)
    return _without(BESIDE_A_PERSON, marked) if HUMAN_SUBJECT.search(marked) else marked


def _without_listed_hosts(sentence: str) -> str:
    return _without(LISTED_HOSTS, sentence) if SPEAKS_OF_ANTIBODIES.search(sentence) else sentence


def _without(patterns: Sequence[re.Pattern[str]], marked: str) -> str:
    for pattern in patterns:
        if "§" not in marked:
            break
        marked = pattern.sub(" ", marked)
    return marked


class SpeciesRules:
    """Filter "species" by `judge_species`; the score names the words that decided."""

    name = "species"
    kinds = APPLIES_TO["species"]
    key = "species-rules-2"

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
