"""Judge by the words of a caption alone whether it speaks of human material.

The paper asked a language model. These rules do not: each word that names an animal is marked; phrases that name one
but do not mean it (the host of an antibody, "owl eye", a patient bitten by a dog) are removed; what is left decides.

A caption without a species is human, as most are. One that shows human and other material ("human and mouse islets"), a
tumour of man grown in an animal, and cells of an animal are non-human: such a picture is not one of human tissue alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings
from pallava.data.clean.species.rules import find_pairs, find_pattern, find_patterns, find_words

Species = Literal["human", "non-human"]

_ANIMALS = find_words("ANIMALS")
_UNCERTAIN = find_words("UNCERTAIN")
_NEEDS_TISSUE = find_words("NEEDS_TISSUE")
_PLACES = find_words("PLACES")
_NEVER = find_words("NEVER")
_COMPOUNDS = find_pairs("COMPOUNDS")
_HARMLESS = find_patterns("HARMLESS")
_LISTED_HOSTS = find_patterns("LISTED_HOSTS")
_BESIDE_A_PERSON = find_patterns("BESIDE_A_PERSON")
_SPEAKS_OF_ANTIBODIES = find_pattern("SPEAKS_OF_ANTIBODIES")
_HUMAN_SUBJECT = find_pattern("HUMAN_SUBJECT")
_EVIDENCE = find_pattern("EVIDENCE")
_GENOTYPES = find_pattern("GENOTYPES")
_KNOCKOUTS = find_pattern("KNOCKOUTS")
_NECROPSY = find_pattern("NECROPSY")
_XENOGRAFTS = find_pattern("XENOGRAFTS")
_GRAFT_MATERIAL = find_pattern("GRAFT_MATERIAL")
_TUMOURS = find_pattern("TUMOURS")
_CULTURES = find_pattern("CULTURES", re.IGNORECASE)
_TISSUES, _SURFACES = find_pattern("TISSUES").pattern, find_pattern("SURFACES").pattern

_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | {"’": "'", "‘": "'", "§": " "})
_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]+(?!-?\d|[A-Za-z])")
_MARKED = re.compile(r"§(\w+)")
_SENTENCE_END = re.compile(r"(?<=\.)\s+")
_REACH = 60  # characters to either side in which a tissue says that a word is an animal

_ARTICLE = r"(?:an?|the|two|three|wild|adult|young|juvenile|captive|stranded|healthy|normal|infected|male|female)"
_ADJECTIVE = r"(?:(?!(?:in|on|of|to|and|or|with|from|for|the|an?|syndrome|genes?|scan|activity)\b)\w+\s+)?"
_BEFORE_TISSUE = re.compile(rf"(?:'s?|s')?\s+{_ADJECTIVE}{_TISSUES}\b", re.IGNORECASE)
_BEFORE_ANY_TISSUE = re.compile(rf"(?:'s?|s')?[,:]?\s+{_ADJECTIVE}(?:{_TISSUES}|{_SURFACES})\b(?! scan)", re.IGNORECASE)
_AFTER_TISSUE = re.compile(rf"\b{_TISSUES}(?: \w+)? (?:of|from|in) (?:{_ARTICLE} ){{0,2}}$", re.IGNORECASE)
_AFTER_ANY_TISSUE = re.compile(
    rf"\b(?:{_TISSUES}|{_SURFACES})(?: \w+)? (?:of|from|in) (?:{_ARTICLE} ){{0,2}}$", re.IGNORECASE
)
_STARTS_A_NOUN = re.compile(rf"(?:^|[.,;:()]\s*|\b(?:of|from|in|and|{_ARTICLE})\s+)$", re.IGNORECASE)
_FOUND_IN = re.compile(r"\b(?:in|from|of) an? (?:[\w-]+ )?$", re.IGNORECASE)
_STANDS_ALONE = re.compile(r"\s*(?:$|[.,;:()]|\b(?:with|infected|showing|that|and|at|after|stained)\b)", re.IGNORECASE)
_STARTS_A_SENTENCE = re.compile(r"(?:^|[.:]\s*)$")
_IS_ILL = re.compile(r"\s+(?:naturally |experimentally )?(?:with|infected)\b")


def judge_species(caption: str) -> Species:
    """Return whether a caption speaks of human material alone.

    Args:
        caption: The text of a picture; no mention of a species means human.
    """
    return "human" if find_species(caption) is None else "non-human"


def find_species(caption: str) -> str | None:
    """Return the words that make a caption non-human, such as "mice", or None."""
    text = unicodedata.normalize("NFKC", caption).translate(_DASHES)
    marked = _without_harmless(_mark_animals(text))
    if animal := _MARKED.search(marked):
        return animal.group(1)
    return _find_evidence(text)


def _find_evidence(text: str) -> str | None:
    lower = text.lower()
    found = _GENOTYPES.search(text) or _EVIDENCE.search(lower) or _find_xenograft(text)
    if not found and not _CULTURES.search(text):
        found = _KNOCKOUTS.search(text)
    if not found and not _HUMAN_SUBJECT.search(lower):
        found = _NECROPSY.search(lower)
    return found.group() if found else None


def _find_xenograft(text: str) -> re.Match[str] | None:
    lower = text.lower()
    is_material = _GRAFT_MATERIAL.search(lower) and not _TUMOURS.search(lower)
    return None if is_material else _XENOGRAFTS.search(text)


def _mark_animals(text: str) -> str:
    """Return the text in lower case, with § before each word that names an animal."""
    for pattern, word in _COMPOUNDS:
        text = pattern.sub(word, text)
    return _WORD.sub(_mark, text).lower()


def _mark(match: re.Match[str]) -> str:
    return f"§{match.group()}" if _is_animal(match) else match.group()


def _is_animal(match: re.Match[str]) -> bool:
    word = match.group()
    if word in _NEEDS_TISSUE:
        return _is_beside_tissue(match, _BEFORE_ANY_TISSUE, _AFTER_ANY_TISSUE)
    if word.lower() in _UNCERTAIN or word in _PLACES:
        return _is_uncertain_animal(match)
    return word.lower() in _ANIMALS and word not in _NEVER


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
    marked = _without(_HARMLESS, marked)
    return _without(_BESIDE_A_PERSON, marked) if _HUMAN_SUBJECT.search(marked) else marked


def _without_listed_hosts(sentence: str) -> str:
    return _without(_LISTED_HOSTS, sentence) if _SPEAKS_OF_ANTIBODIES.search(sentence) else sentence


def _without(patterns: Sequence[re.Pattern[str]], marked: str) -> str:
    for pattern in patterns:
        if "§" not in marked:
            break
        marked = pattern.sub(" ", marked)
    return marked


class SpeciesRules(Filter):
    """Filter "species" by rules on words."""

    name = "species"
    key = "species-rules-2"

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Return ``{"species": "human" or "non-human", "found": the words that decided}``."""
        found = [find_species(candidate.text) for candidate in candidates]
        return [{"species": "human" if words is None else "non-human", "found": words or ""} for words in found]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Drop non-human material."""
        return KEEP if findings["species"] == "human" else Decision(False, "non_human")
