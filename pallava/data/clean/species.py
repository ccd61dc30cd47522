"""Judge by the words of a caption alone whether it speaks of human material.

The paper asked a language model. The rules in ``species.ini`` do not: each word that names an animal is marked; phrases
that name one but do not mean it (the host of an antibody, "owl eye", a patient bitten by a dog) are removed; what is
left decides.

A caption without a species is human, as most are. One that shows human and other material ("human and mouse islets"), a
tumour of man grown in an animal, and cells of an animal are non-human: such a picture is not one of human tissue alone.
"""

import re
import unicodedata
from collections.abc import Sequence
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Literal

from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings

_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | {"’": "'", "‘": "'", "§": " "})
_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]+(?!-?\d|[A-Za-z])")
_MARKED = re.compile(r"§(\w+)")
_SENTENCE_END = re.compile(r"(?<=\.)\s+")
_NAME = re.compile(r"\{([A-Z_]+)\}")
_REACH = 60  # characters to either side in which a tissue says that a word is an animal


def judge_species(caption: str) -> Literal["human", "non-human"]:
    """Return whether a picture's caption speaks of human material alone; no mention of a species means human."""
    return "human" if find_species(caption) is None else "non-human"


def find_species(caption: str) -> str | None:
    """Return the words that make a caption non-human, such as "mice", or None."""
    text = unicodedata.normalize("NFKC", caption).translate(_DASHES)
    marked = _without_harmless(_mark_animals(text))
    animal = _MARKED.search(marked)
    return animal.group(1) if animal else _find_evidence(text)


class SpeciesRules(Filter):
    """Filter "species" by rules on words."""

    name = "species"
    key = "species-rules-2"
    share = 256

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Return ``{"species": "human" or "non-human", "found": the words that decided}``."""
        found = [find_species(candidate.text) for candidate in candidates]
        return [{"species": "human" if words is None else "non-human", "found": words or ""} for words in found]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        return KEEP if findings["species"] == "human" else Decision("non_human")


def _find_evidence(text: str) -> str | None:
    lower = text.lower()
    is_graft_material = _search("GRAFT_MATERIAL", lower) and not _search("TUMOURS", lower)
    found = (
        _search("GENOTYPES", text)
        or _search("EVIDENCE", lower)
        or (None if is_graft_material else _search("XENOGRAFTS", text))
        or (None if _search("CULTURES", text) else _search("KNOCKOUTS", text))
        or (None if _search("HUMAN_SUBJECT", lower) else _search("NECROPSY", lower))
    )
    return found.group() if found else None


def _mark_animals(text: str) -> str:
    """Return the text in lower case, with § before each word that names an animal."""
    for pattern, word in _compounds():
        text = pattern.sub(word, text)
    return _WORD.sub(lambda match: "§" * _is_animal(match) + match.group(), text).lower()


def _is_animal(match: re.Match[str]) -> bool:
    word = match.group()
    if word in _words("NEEDS_TISSUE"):
        return _is_beside_tissue(match, "BEFORE_ANY_TISSUE", "AFTER_ANY_TISSUE")
    if word.lower() in _words("UNCERTAIN") or word in _words("PLACES"):
        return _is_uncertain_animal(match)
    return word.lower() in _words("ANIMALS") and word not in _words("NEVER")


def _is_uncertain_animal(match: re.Match[str]) -> bool:
    before, after = _around(match)
    is_calf = match.group().lower().startswith("cal")  # of a leg, or of a cow
    if _search("STARTS_A_SENTENCE", before) and _pattern("IS_ILL").match(after):
        return True
    if not is_calf and _search("FOUND_IN", before) and _pattern("STANDS_ALONE").match(after):
        return True
    precedes = "AFTER_TISSUE" if is_calf else "AFTER_ANY_TISSUE"
    return bool(_search("STARTS_A_NOUN", before)) and _is_beside_tissue(match, "BEFORE_TISSUE", precedes)


def _is_beside_tissue(match: re.Match[str], follows: str, precedes: str) -> bool:
    before, after = _around(match)
    return bool(_pattern(follows).match(after) or _search(precedes, before))


def _around(match: re.Match[str]) -> tuple[str, str]:
    text, start, end = match.string, match.start(), match.end()
    return text[max(0, start - _REACH) : start], text[end : end + _REACH]


def _without_harmless(marked: str) -> str:
    if "§" not in marked:
        return marked
    sentences = _SENTENCE_END.split(marked)
    marked = " ".join(_without("LISTED_HOSTS", each, beside="SPEAKS_OF_ANTIBODIES") for each in sentences)
    return _without("BESIDE_A_PERSON", _without("HARMLESS", marked), beside="HUMAN_SUBJECT")


def _without(name: str, marked: str, *, beside: str = "") -> str:
    """Return the text without what a list describes; only if the text has what `beside` describes, too."""
    if beside and not _search(beside, marked):
        return marked
    for pattern in _patterns(name):
        if "§" not in marked:
            break
        marked = pattern.sub(" ", marked)
    return marked


def _search(name: str, text: str) -> re.Match[str] | None:
    return _pattern(name).search(text)


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(_entries()[name][1].split())


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_source(name))


@cache
def _patterns(name: str) -> list[re.Pattern[str]]:
    return list(map(re.compile, _sources(name)))


@cache
def _compounds() -> list[tuple[re.Pattern[str], str]]:
    """Return patterns, which match from the start of a word in any case, with the word for each."""
    pairs = (line.partition(": ") for line in _entries()["COMPOUNDS"][1].splitlines())
    return [(re.compile(rf"\b{pattern}", re.IGNORECASE), word) for word, _, pattern in pairs]


@cache
def _entries() -> dict[str, tuple[str, str]]:
    """Return kind and text of each entry of ``species.ini`` by name."""
    parser = ConfigParser(delimiters=(" =",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(Path(__file__).with_suffix(".ini").read_text(encoding="utf-8"))
    items = [item for section in parser.sections() for item in parser.items(section)]
    return {key.split()[1]: (key.split()[0], text.strip()) for key, text in items}


def _sources(name: str) -> list[str]:
    """Return the regular expressions of an entry: of a list those of its lines, some of which name another entry."""
    kind, text = _entries()[name]
    lines = text.replace("\n+ ", "").splitlines()
    if kind == "products":
        return [_product(*line.split(": ")) for line in lines]
    if kind != "list":
        return [_source(name)]
    nested = [_sources(match[1]) if (match := _NAME.fullmatch(line)) else [_filled(line)] for line in lines]
    return [each for part in nested for each in part]


@cache
def _source(name: str) -> str:
    kind, text = _entries()[name]
    return {"terms": _any_of, "animals": _animals, "phrases": _phrases, "pattern": _filled}[kind](text)


def _filled(text: str) -> str:
    return _NAME.sub(lambda match: _source(match[1]), text.replace("\n", ""))


def _any_of(terms: str) -> str:
    return "(?:" + "|".join(r"[-\s]+".join(term.split()) for term in terms.split(";")) + ")"


def _animals(names: str) -> str:
    return rf"§(?:{'|'.join(names.split())})\b(?:'s|s')?"


def _product(suppliers: str, products: str) -> str:
    template = _entries()["PRODUCT"][1].replace("{SUPPLIERS}", _animals(suppliers))
    return _filled(template.replace("{SUPPLIED}", _any_of(products)))


def _phrases(text: str) -> str:
    patterns = [r"[-\s]+".join(map(_phrase_word, phrase.split())) for phrase in text.split(";")]
    named = "|".join(pattern[1:] for pattern in patterns if pattern[0] == "§")
    others = "|".join(pattern for pattern in patterns if pattern[0] != "§")
    return rf"(?:§(?:{named})|\b(?:{others}))s?\b"


def _phrase_word(word: str) -> str:
    is_animal = word in _words("ANIMALS") | _words("UNCERTAIN")
    return rf"§{word}(?:'s|s'|s)?" if is_animal else word.replace("*", r"\w*")
