"""Read the rules about species, ``rules.ini``: words and regular expressions by name."""

from __future__ import annotations

import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path

_NAME = re.compile(r"\{([A-Z_]+)\}")
_CONTINUED = "\n+ "


def find_words(name: str) -> frozenset[str]:
    """Return the words of an entry."""
    return frozenset(_text("words", name).split())


def find_pattern(name: str, flags: int = 0) -> re.Pattern[str]:
    """Return the regular expression of an entry."""
    return re.compile(_pattern(name), flags)


def find_patterns(name: str) -> tuple[re.Pattern[str], ...]:
    """Return the regular expressions of a list."""
    return tuple(map(re.compile, _patterns(name)))


def find_pairs(name: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return regular expressions, which match from the start of a word in any case, with the word for each."""
    pairs = (line.partition(": ") for line in _text("pairs", name).splitlines())
    return tuple((re.compile(rf"\b{pattern}", re.IGNORECASE), word) for word, _, pattern in pairs)


@cache
def _entries() -> dict[str, tuple[str, str]]:
    """Return kind and text of each entry by name."""
    parser = ConfigParser(delimiters=(" =",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(Path(__file__).with_name("rules.ini").read_text(encoding="utf-8"))
    items = [item for section in parser.sections() for item in parser.items(section)]
    return {key.split()[1]: (key.split()[0], text.strip()) for key, text in items}


def _text(kind: str, name: str) -> str:
    found, text = _entries()[name]
    assert found == kind, name
    return text


@cache
def _pattern(name: str) -> str:
    kind, text = _entries()[name]
    if kind == "terms":
        return any_of(text)
    if kind == "animals":
        return animals(text)
    if kind == "phrases":
        return _phrases(text)
    assert kind == "pattern", name
    return _filled(text.replace("\n", ""))


@cache
def _patterns(name: str) -> tuple[str, ...]:
    kind, text = _entries()[name]
    lines = text.replace(_CONTINUED, "").splitlines()
    if kind == "products":
        return tuple(_product(*line.replace("\n", " ").split(": ")) for line in lines)
    patterns: list[str] = []
    for line in lines:
        match = _NAME.fullmatch(line)
        is_list = match and _entries()[match[1]][0] in ("list", "products")
        patterns += _patterns(match[1]) if match and is_list else [_filled(line)]
    return tuple(patterns)


def _filled(text: str) -> str:
    return _NAME.sub(lambda match: _pattern(match[1]), text)


def any_of(terms: str) -> str:
    """Return a pattern of the terms that semicolons separate; a space in a term matches spaces or hyphens."""
    return "(?:" + "|".join(r"[-\s]+".join(term.split()) for term in terms.split(";")) + ")"


def animals(names: str) -> str:
    """Return a pattern of some animals in a marked text."""
    return rf"§(?:{'|'.join(names.split())})\b(?:'s|s')?"


def _product(suppliers: str, products: str) -> str:
    template = _entries()["PRODUCT"][1].replace("{SUPPLIERS}", animals(suppliers))
    return _filled(template.replace("{SUPPLIED}", any_of(products)))


def _phrases(text: str) -> str:
    patterns = [r"[-\s]+".join(map(_word, phrase.split())) for phrase in text.split(";")]
    named = "|".join(pattern[1:] for pattern in patterns if pattern[0] == "§")
    others = "|".join(pattern for pattern in patterns if pattern[0] != "§")
    return rf"(?:§(?:{named})|\b(?:{others}))s?\b"


def _word(word: str) -> str:
    is_animal = word in find_words("ANIMALS") | find_words("UNCERTAIN")
    return rf"§{word}(?:'s|s'|s)?" if is_animal else word.replace("*", r"\w*")
