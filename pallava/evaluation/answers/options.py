"""Which of some options an answer names, as a careful reader would tell: by letter, or in the option's own words.

An answer that names none, or several, or contradicts itself is not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from pallava.evaluation.answers.rules import exact_form
from pallava.evaluation.examples import ClassSet, known_set, known_sets
from pallava.prompts import CHOICE_LETTERS

Names = Sequence[Sequence[str]]
"""Of each option, what it may be called; empty if only the letters are known."""

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
    """The letter of the choice that an answer names, or None.

    Args:
        answer: What a model said.
        choices: Texts of the choices; none if they are not known, and then only letters are read.
    """
    number = _read(answer, [(choice,) for choice in choices], (_alone, _whole, _labelled, _stated, _mentioned))
    return None if number is None else CHOICE_LETTERS[number]


def read_class(answer: str, names: Names) -> int | None:
    """The number of the class that an answer names, or None; a name goes before a letter, since labels can be letters.

    Args:
        answer: What a model said.
        names: What each class may be called, as `class_names` gives it.
    """
    return _read(answer, names, (_whole, _alone, _labelled, _stated, _mentioned))


def class_names(choices: Sequence[str], class_set: ClassSet | None = None) -> list[tuple[str, ...]]:
    """What each class may be called: as it was put to the model, by its label, that in separate words, and its names.

    Args:
        choices: Of each class, the label or a name.
        class_set: The classes; default: the known set that has all choices, if there is one.
    """
    for each in [class_set] if class_set else map(known_set, known_sets()):
        own = [next((called for called in _called(each) if choice in called), ()) for choice in choices]
        if all(own):
            break
    else:
        own = [()] * len(choices)
    return [(choice, _separate_words(choice), *called) for choice, called in zip(choices, own, strict=True)]


def _called(class_set: ClassSet) -> list[tuple[str, ...]]:
    return [(label, _separate_words(label), *names) for label, names in class_set.classes]


def _separate_words(label: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", label)


def _read(answer: str, names: Names, readers: Sequence[Callable[[str, Names], set[int]]]) -> int | None:
    """Asks one reader after the other; the first that finds something decides, if it finds one option."""
    lines = unicodedata.normalize("NFKC", answer).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    for reader in readers:
        if found := reader(text, names):
            return found.pop() if len(found) == 1 else None
    return None


def _alone(text: str, names: Names) -> set[int]:
    """Nothing but a letter."""
    match = _ALONE.fullmatch(text)
    return _numbers([match[1]] if match else [], names)


def _whole(text: str, names: Names) -> set[int]:
    """Nothing but an option's text, first as it is, then whatever its punctuation."""
    for form in (exact_form, _plain):
        said = form(text)
        if found := {number for number, own in enumerate(names) if said and said in map(form, own)}:
            return found
    return set()


def _labelled(text: str, names: Names) -> set[int]:
    """A letter in front of a line, or of a colon, and what stands behind it if that is the text of an option."""
    found: set[int] = set()
    for match in _LABEL.finditer(text):
        if number := _numbers([match[1]], names):
            found |= number | _whole(text[match.end() :].split("\n", 1)[0], names)
    return found


def _stated(text: str, names: Names) -> set[int]:
    """A letter of which the sentence says that it is the answer."""
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
    """Words and numbers alone, in lower case."""
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())
