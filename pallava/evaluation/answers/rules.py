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

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from pallava.evaluation.class_sets import ClassSet, known_sets
from pallava.prompts import CHOICE_LETTERS

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
    words = (_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).split())
    return [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]


def token_overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the answer's set of tokens, from 0 to 1; all zero if either is empty."""
    words, right = set(tokens(answer)), set(tokens(reference))
    shared = len(words & right)
    if not shared:
        return 0.0, 0.0, 0.0
    return shared / len(words), shared / len(right), 2 * shared / (len(words) + len(right))


def bleu_1(answer: str, reference: str) -> float:
    """Return BLEU of single tokens (doi:10.3115/1073083.1073135): clipped precision, less for too short an answer."""
    words, right = tokens(answer), tokens(reference)
    shared = (Counter(words) & Counter(right)).total()
    if not shared:
        return 0.0
    return shared / len(words) * min(1.0, math.exp(1 - len(right) / len(words)))


Names = Sequence[Sequence[str]]
"""The names of each option; empty if only the letters are known."""

_OPENING, _CLOSING = r"[\s*_\"'“(\[]*", r"[*_\"'”)\]]*"
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_LABEL = re.compile(
    rf"(?:^{_OPENING}|(?<=\s)(?=[A-Z]\s*:))([A-Za-z])(?:{_CLOSING}\s*:|[*_]*[)\]]|[*_]*\.(?=[\s*_]|$)|\s+[-–—]\s)",
    re.MULTILINE,
)
# A letter before a word in lower case is the word "a" or part of a name ("B cell"), unless the sentence goes on so.
_GOES_ON = "because|since|as|which|based|and|or|is|for|due|given|with|by|according|in"
_LETTER = (
    rf"[\s:]*{_OPENING}(?:(?i:(?:the\s+)?(?:option|choice|letter))\b[\s:]*{_OPENING})?"
    rf"([A-Z](?!\s+(?!(?:{_GOES_ON})\b)[a-z])|[a-z](?=\W*$))(?![\w'’]|-\w)"
)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{)?[\s(]*([A-Za-z])(?=\s*[.):}])")
_ANSWER = re.compile(
    r"(?i:\b(?:answer|ans\b\.?|(?:correct|right|best)\s+(?:option|choice|one|letter)|choose|select|pick|go\s+with)"
    r"(?!\w)(?:\s+(?:is|would\s+be|must\s+be|should\s+be))?)" + _LETTER
)
_THINK = r"(?i:(?<!not )(?<!n't )(?<!n’t )\b(?:think|believe|guess|say)(?:\s+that)?)"
_REASON = r"(?:because|since|due\s+to|based\s+on)\b"
# "B is correct", where nothing in front makes the letter part of a name or of a list.
_FREE = rf"(?:^|[.;:!?]\s+|(?<!\b[A-Z]),\s+|{_THINK}\s+|(?i:\b(?:so|thus|hence|therefore)\s+)){_OPENING}"
_STOPS = rf"(?=[\W_]*$|[.,;:!?]|\s+(?:{_REASON}|(?:as|given|and)\b))"
_PRAISE = rf"answer\b|(?:correct|right|best|likely)(?:\s+(?:answer|option|choice|one|diagnosis|match)\b|{_STOPS})"
_RIGHT = re.compile(
    rf"{_FREE}([A-Za-z])(?={_CLOSING}\s+(?:is|must\s+be|would\s+be|seems|appears)\s+(?:to\s+be\s+)?"
    rf"(?:(?:the|most|clearly|definitely|probably|likely)\s+)*(?:{_PRAISE}))",
    re.MULTILINE,
)
_OPTION = re.compile(
    rf"(?i:(?<!not )(?<!not the )(?<!\w)(?:option|choice|letter|it\s+is|it's)\b){_LETTER}"
    rf"(?!{_CLOSING}\s+(?:is|seems)\s+(?:not|in|wrong|false))"
)
# Where an "A" may well be the article, the letter must end its clause, or be followed by a reason.
_FOLLOWED = rf"\s+(?:{_REASON}|(?:and|or)\s+[A-Z]\b)"
_THOUGHT = re.compile(
    rf"{_THINK}\s+{_OPENING}([A-Z])(?={_CLOSING}(?:\s*(?:$|[,;:!?]|\.(?!\s*[a-z]))|{_FOLLOWED}))", re.MULTILINE
)
_LEAD = r"(?i:based|according|given|judging|considering|looking|from|in|so|thus|hence|therefore|overall|finally)"
_CONCLUDED = re.compile(
    rf"^{_LEAD}\b[^\n]*?(?:(?<!\b[A-Z]),|:)\s+{_OPENING}([A-Z])(?={_CLOSING}(?:[\s.!]*$|{_FOLLOWED}))", re.MULTILINE
)
_REASONED = re.compile(rf"^{_OPENING}([A-Z])(?={_CLOSING},?\s+{_REASON})", re.MULTILINE)
_STATEMENTS = ((_BOXED,), (_ANSWER, _RIGHT), (_OPTION,), (_THOUGHT, _CONCLUDED, _REASONED))
"""The plainest first; the first that find a letter decide."""
_ANOTHER = re.compile(rf"{_CLOSING}\s*(?:,|/|&|\bor\b|\band\b)+{_OPENING}(?:(?i:option|choice)\s+)?([A-Z])(?!\w)")
_NEGATION = re.compile(r"\b(?:no|not|neither|nor|never|without|except|cannot|rather than|instead of|\w+n t)\b")


def read_choice(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice that an answer names, or None; without `choices` only letters are read."""
    number = _read(answer, [(choice,) for choice in choices], (_alone, _whole, _labelled, _stated, _mentioned))
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
    lines = unicodedata.normalize("NFKC", answer).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    for reader in readers:
        if found := reader(text, names):
            return found.pop() if len(found) == 1 else None
    return None


def _alone(text: str, names: Names) -> set[int]:
    match = _ALONE.fullmatch(text)
    return _numbers([match[1]] if match else [], names)


def _whole(text: str, names: Names) -> set[int]:
    """Nothing but an option's text, first as it is, then whatever its punctuation."""
    for form in (_exact_form, _plain):
        formed = form(text)
        if found := {number for number, own in enumerate(names) if formed and formed in map(form, own)}:
            return found
    return set()


def _labelled(text: str, names: Names) -> set[int]:
    found: set[int] = set()
    for match in _LABEL.finditer(text):
        if number := _numbers([match[1]], names):
            found |= number | _whole(text[match.end() :].split("\n", 1)[0], names)
    return found


def _stated(text: str, names: Names) -> set[int]:
    for patterns in _STATEMENTS:
        letters = []
        for match in (match for pattern in patterns for match in pattern.finditer(text)):
            another = _ANOTHER.match(text, match.end())
            letters += [match[1], *([another[1]] if another else [])]
        if found := _numbers(letters, names):
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
    return set() if _NEGATION.search(rest) else found


def _numbers(letters: Sequence[str], names: Names) -> set[int]:
    known = CHOICE_LETTERS[: len(names) or None]
    return {known.index(letter.upper()) for letter in letters if letter.upper() in known}


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())
