"""How an answer is compared with its reference, and which of some options it names.

It is compared by the rules of three projects, word for word, and by its tokens. The option that it names is read as a
careful reader would: by letter, or in the option's own words; one that names none, or several, or contradicts itself
is not read. The rules are re-stated, faults mended: whatever the rule, an answer without words is wrong, and spaces
around a reference do not matter. Where they come from:

- PA-LLaVA: https://github.com/ddw2AIGROUP2CQUPT/PA-LLaVA (arXiv:2408.09530)
- LLaVA-Med: https://github.com/microsoft/LLaVA-Med (arXiv:2306.00890)
- Quilt-LLaVA: https://github.com/aldraus/quilt-llava (arXiv:2312.04746)
- Tokens are made as the VQA challenge does (arXiv:1505.00468), which all three and MultiMedEval follow, and compared
  as sets, as MultiMedEval does: https://github.com/corentin-ryr/MultiMedEval (arXiv:2402.09262)
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pallava.evaluation.class_sets import ClassSet, known_sets
from pallava.io.files import read_package_data
from pallava.judging.prompts import final_answer
from pallava.prompts import CHOICE_LETTERS

_DELETED_AS_PUBLISHED = str.maketrans("", "", ",.'!?\"()*#:;~")
_SPELLED_AS_PUBLISHED = ((" \t", " "), ("x ray", "xray"), ("x-ray", "xray"), (" - ", "-"))

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})

_DATA: dict[str, Any] = read_package_data(__file__)
_FULL = [word + ending for ending, words in _DATA["contracted"].items() for word in words.split()]
_SPELLED: dict[str, str] = {word.replace("'", ""): word for word in _FULL} | _DATA["spelled"]
"""How the VQA challenge spells words: numbers as digits, contractions with their apostrophe."""


def published_form(text: str) -> str:
    """Return a text as PA-LLaVA compares it: lower case, without ``, . ' ! ? " ( ) * # : ; ~``; no outer spaces."""
    text = text.lower().translate(_DELETED_AS_PUBLISHED)
    for found, spelled in _SPELLED_AS_PUBLISHED:
        text = text.replace(found, spelled)
    return text.strip()


def is_published_match(answer: str, reference: str) -> bool:
    """Return whether the texts are equal in PA-LLaVA's form: its rule for PathVQA."""
    form = published_form(answer)
    return bool(form) and form == published_form(reference)


def is_published_choice(answer: str, reference: str) -> bool:
    """Return whether the text up to the first colon, if any, is the letter: PA-LLaVA's rule for PMC-VQA."""
    text = answer.strip()
    head = text if text.startswith(":") else text.split(":", 1)[0]
    return head.lower() == reference.strip().lower()


def is_exact_match(answer: str, reference: str) -> bool:
    """Return whether the texts are equal but for case, spaces around and in a row, and a final full stop."""
    form = _exact_form(answer)
    return bool(form) and form == _exact_form(reference)


def _exact_form(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def is_right_by_llava_med(answer: str, reference: str) -> bool:
    """Return whether the reference occurs in the answer, be it within a word: LLaVA-Med's rule for yes and no.

    Its script leaves answers out that name the other word only; here they are wrong.
    """
    return " ".join(tokens(reference)) in " ".join(tokens(answer))


def is_right_by_quilt_llava(answer: str, reference: str) -> bool:
    """Return whether yes or no is right by Quilt-LLaVA's rule: the words no and not mean no, any others mean yes."""
    words = tokens(answer)
    meaning = "no" if {"no", "not"}.intersection(words) else "yes"
    return bool(words) and [meaning] == tokens(reference)


def tokens(text: str) -> list[str]:
    """Return the words of a text as the VQA challenge compares them.

    Lower case; a punctuation mark is deleted if it stands next to a space anywhere in the text, or the text has a
    number with a comma, and is a space otherwise; full stops go, but for decimal points; articles go; numbers up to
    ten are digits; contractions get their apostrophe back.
    """
    text = text.lower()
    are_deleted = bool(_COMMA_IN_NUMBER.search(text))
    is_loose = {mark: are_deleted or f"{mark} " in text or f" {mark}" in text for mark in _MARKS}
    text = text.translate({ord(mark): "" if loose else " " for mark, loose in is_loose.items()})
    return [_SPELLED.get(word, word) for word in _FULL_STOP.sub("", text).split() if word not in _ARTICLES]


def token_overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the answer's set of tokens, from 0 to 1; all zero if either is empty."""
    words, right = set(tokens(answer)), set(tokens(reference))
    if not (shared := len(words & right)):
        return 0.0, 0.0, 0.0
    return shared / len(words), shared / len(right), 2 * shared / (len(words) + len(right))


def bleu_1(answer: str, reference: str) -> float:
    """Return BLEU of single tokens (doi:10.3115/1073083.1073135): clipped precision, less for too short an answer."""
    words, right = tokens(answer), tokens(reference)
    if not (shared := (Counter(words) & Counter(right)).total()):
        return 0.0
    return shared / len(words) * min(1.0, math.exp(1 - len(right) / len(words)))


Names = Sequence[Sequence[str]]
"""The names of each option; empty if only the letters are known."""


def read_choice(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice that an answer names, or None; without `choices` only letters are read."""
    names = [(choice,) for choice in choices]
    number = _read(answer, names, (_alone, _whole, _set_apart, _labelled, _stated, _mentioned))
    return None if number is None else CHOICE_LETTERS[number]


def read_class(answer: str, names: Names) -> int | None:
    """Return the number of the class that an answer names, or None; names precede letters, since labels can be letters.

    `names` are those of each class, as `class_names` returns them.
    """
    return _read(answer, names, (_whole, _alone, _labelled, _stated, _mentioned))


def class_names(choices: Sequence[str], class_set: ClassSet | None = None) -> list[tuple[str, ...]]:
    """Return the names of each class: as it was put to the model, its label, that in separate words, and its own.

    Its own are those of the class set, by default of the known set that has all choices, if any.
    """
    for each in [class_set] if class_set else known_sets().values():
        called = [(label, _separate_words(label), *names) for label, names in each.classes]
        own = [next((names for names in called if choice in names), ()) for choice in choices]
        if all(own):
            return [(choice, _separate_words(choice), *names) for choice, names in zip(choices, own, strict=True)]
    return [(choice, _separate_words(choice)) for choice in choices]


def _separate_words(label: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", label)


def _read(answer: str, names: Names, readers: Sequence[Callable[[str, Names], set[int]]]) -> int | None:
    """Try one reader after the other; the first that finds anything decides, if it finds one option."""
    lines = unicodedata.normalize("NFKC", final_answer(answer)).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    for reader in readers:
        if found := reader(text, names):
            return found.pop() if len(found) == 1 else None
    return None


def _alone(text: str, names: Names) -> set[int]:
    return _numbers(_pattern("alone").findall(text), names)


def _whole(text: str, names: Names) -> set[int]:
    """Nothing but an option's text, first as it is, then whatever its punctuation."""
    for form in (_exact_form, _plain):
        formed = form(text)
        if found := {number for number, own in enumerate(names) if formed and formed in map(form, own)}:
            return found
    return set()


def _set_apart(text: str, names: Names) -> set[int]:
    """Find a letter in a line of its own; another option in such a line, or stated elsewhere, contradicts it."""
    found = _numbers(_pattern("apart").findall(text), names)
    named = set[int]().union(*(_whole(line, names) for line in _pattern("apart").sub("", text).split("\n")))
    if not found or not (named or _pattern("set_apart").search(text)):
        return set()
    stated = [match[1] for name in _DATA["contradictions"] for match in _pattern(name).finditer(text)]
    return found | named | _numbers(stated, names)


def _labelled(text: str, names: Names) -> set[int]:
    found: set[int] = set()
    for match in _pattern("label").finditer(text):
        if number := _numbers([match[1]], names):
            found |= number | _whole(text[match.end() :].split("\n", 1)[0], names)
    return found


def _stated(text: str, names: Names) -> set[int]:
    for patterns in _DATA["statements"]:
        matches = [match for name in patterns for match in _pattern(name).finditer(text)]
        further = [_pattern("another").match(text, match.end()) for match in matches]
        if found := _numbers([match[1] for match in (*matches, *further) if match], names):
            return found
    return set()


def _mentioned(text: str, names: Names) -> set[int]:
    """Texts of options within the answer, but for those within a longer one; none if the rest says no."""
    owners: dict[str, set[int]] = {}
    for number, own in enumerate(names):
        for name in map(_plain, own):
            owners.setdefault(name, set()).add(number)
    rest, found = _plain(text), set[int]()
    for name in sorted(owners, key=len, reverse=True):
        rest, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", "|", rest) if name else (rest, 0)
        found |= owners[name] if count else set()
    return set() if _pattern("negation").search(rest) else found


def _numbers(letters: Sequence[str], names: Names) -> set[int]:
    known = CHOICE_LETTERS[: len(names) or None]
    return {known.index(letter.upper()) for letter in letters if letter.upper() in known}


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Compile a pattern of ``rules.yaml``, in which {name} stands for another one."""
    text = _DATA["patterns"][name]
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: _pattern(match[1]).pattern, text))
