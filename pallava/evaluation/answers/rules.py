"""How an answer is judged against its reference: by the rules of three projects, word for word, and by its tokens.

The rules are re-stated, faults mended: whatever the rule, an answer without words is wrong, and spaces around a
reference do not matter. Where they come from:

- PA-LLaVA: https://github.com/ddw2AIGROUP2CQUPT/PA-LLaVA (arXiv:2408.09530)
- LLaVA-Med: https://github.com/microsoft/LLaVA-Med (arXiv:2306.00890)
- Quilt-LLaVA: https://github.com/aldraus/quilt-llava (arXiv:2312.04746)
- Tokens are made as the VQA challenge does (arXiv:1505.00468), which all three and MultiMedEval follow, and compared
  as sets, as MultiMedEval does: https://github.com/corentin-ryr/MultiMedEval (arXiv:2402.09262)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

_DELETED_AS_PUBLISHED = str.maketrans("", "", ",.'!?\"()*#:;~")
_SPELLED_AS_PUBLISHED = ((" \t", " "), ("x ray", "xray"), ("x-ray", "xray"), (" - ", "-"))

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", "zero": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS, start=1)}
_CONTRACTED = {
    "n't": "ai are ca could did do does had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
}
# The challenge spells contractions out that lost their apostrophe; its double ones ("wouldn'tve") are left as they are.
_CONTRACTIONS = {
    word + ending.replace("'", ""): word + ending for ending, words in _CONTRACTED.items() for word in words.split()
} | {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"}

_QUILT_NO = frozenset({"no", "not"})


class Overlap(NamedTuple):
    """What the sets of tokens of an answer and of its reference have in common, each from 0 to 1."""

    precision: float
    recall: float
    f1: float


def published_form(text: str) -> str:
    """A text as PA-LLaVA compares it: lower case, without ``, . ' ! ? " ( ) * # : ; ~``; outer spaces are dropped."""
    text = text.lower().translate(_DELETED_AS_PUBLISHED)
    for found, spelled in _SPELLED_AS_PUBLISHED:
        text = text.replace(found, spelled)
    return text.strip()


def is_published_match(answer: str, reference: str) -> bool:
    """PA-LLaVA's rule for PathVQA: equal in its form."""
    form = published_form(answer)
    return bool(form) and form == published_form(reference)


def is_published_choice(answer: str, reference: str) -> bool:
    """PA-LLaVA's rule for PMC-VQA: what stands before the first colon is the letter; without a colon, all of it."""
    text = answer.strip()
    head = text if text.startswith(":") else text.split(":", 1)[0]
    return head.lower() == reference.strip().lower()


def is_exact_match(answer: str, reference: str) -> bool:
    """Equal but for case, spaces around and in a row, and a final full stop."""
    return bool(exact_form(answer)) and exact_form(answer) == exact_form(reference)


def exact_form(text: str) -> str:
    """A text in lower case, with single spaces, without a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def is_right_by_llava_med(answer: str, reference: str) -> bool:
    """LLaVA-Med's rule for yes and no: the reference occurs in the answer, be it within a word.

    Its script leaves answers out that name the other word only; here they are wrong.
    """
    return " ".join(tokens(reference)) in " ".join(tokens(answer))


def is_right_by_quilt_llava(answer: str, reference: str) -> bool:
    """Quilt-LLaVA's rule for yes and no: an answer with the word no or not means no, any other means yes."""
    words = tokens(answer)
    said = "no" if _QUILT_NO.intersection(words) else "yes"
    return bool(words) and [said] == tokens(reference)


def tokens(text: str) -> list[str]:
    """The words of a text as the VQA challenge compares them.

    Lower case; a punctuation mark is deleted if it stands next to a space anywhere in the text, or the text has a
    number with a comma, and is a space otherwise; full stops go, but for decimal points; articles go; numbers up to
    ten are digits; contractions get their apostrophe back.
    """
    text = text.lower()
    are_deleted = bool(_COMMA_IN_NUMBER.search(text))
    is_loose = {mark: are_deleted or f"{mark} " in text or f" {mark}" in text for mark in _MARKS}
    text = text.translate({ord(mark): "" if loose else " " for mark, loose in is_loose.items()})
    words = (_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).split())
    return [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]


def token_overlap(answer: str, reference: str) -> Overlap:
    """Precision, recall and F1 of the answer's set of tokens; all zero if either is empty."""
    said, right = set(tokens(answer)), set(tokens(reference))
    shared = len(said & right)
    if not shared:
        return Overlap(0.0, 0.0, 0.0)
    return Overlap(shared / len(said), shared / len(right), 2 * shared / (len(said) + len(right)))


def bleu_1(answer: str, reference: str) -> float:
    """BLEU of single tokens (doi:10.3115/1073083.1073135): clipped precision, less for an answer that is too short."""
    said, right = tokens(answer), tokens(reference)
    shared = (Counter(said) & Counter(right)).total()
    if not shared:
        return 0.0
    return shared / len(said) * min(1.0, math.exp(1 - len(right) / len(said)))
