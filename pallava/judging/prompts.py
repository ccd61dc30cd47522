"""Prompts of judges: wordings for language models and captions for CLIPs, from ``prompts.yaml``.

The paper had GLM-4V-9B and Qwen2-7B clean its data and a language model grade its captions, and did not publish its
prompts; these wordings are our own.
"""

import re
from dataclasses import dataclass

from pallava.io.files import read_package_data

_WORDINGS = read_package_data(__file__)

MAX_GRADE: int = _WORDINGS["GRADES"]["best"]  # the worst is 0
_SCALE, _GRADE = "|".join(_WORDINGS["GRADES"]["scale"]), "".join(_WORDINGS["GRADES"]["grade"])
_REPLIES = {name: re.compile(pattern, re.IGNORECASE | re.DOTALL) for name, pattern in _WORDINGS["REPLIES"].items()}


@dataclass(frozen=True)
class Prompt:
    """A request with a ``{name}`` for each text to insert."""

    version: int
    text: str

    def fill(self, **texts: str) -> str:
        """Return the request with these texts inserted; braces within them are kept."""
        return re.sub(r"\{(\w+)\}", lambda match: texts[match[1]], self.text)


@dataclass(frozen=True)
class JudgePrompt(Prompt):
    """A question with two possible answers: the pattern of each by its label."""

    labels: dict[str, str]

    def read(self, reply: str) -> str | None:
        """Return the label in a reply, the one at its beginning before others; None if it has none or several."""
        text = re.sub(r"^[\s\W]*(?:(?:the )?(?:final )?answer(?: is)?\b)?[\s\W]*", "", final_answer(reply).lower())
        for label, pattern in self.labels.items():
            if re.match(rf"(?:{pattern})\b", text):
                return label
        found = [label for label, pattern in self.labels.items() if re.search(rf"\b(?:{pattern})\b", text)]
        return found[0] if len(found) == 1 else None


def read_grade(reply: str) -> float | None:
    """Return the grade in a reply, 0 to `MAX_GRADE`, or None if it has none, a range, or one off the scale.

    The grade is at the beginning, or alone in the last line: pathology is full of other numbers ("grade 3").
    """
    lines = re.sub(_SCALE, " ", final_answer(reply).lower()).strip().splitlines()
    found = lines and (re.match(_GRADE, lines[0]) or re.fullmatch(rf"{_GRADE}\W*", lines[-1]))
    return float(found[1]) if found and float(found[1]) <= MAX_GRADE else None


def final_answer(text: str) -> str:
    """Return what a reply says in the end, without thoughts, special tokens, and what follows an end token.

    A reply that ends within its thoughts has no answer; of one with answer tags, only what they hold is the answer.
    """
    pieces = (_REPLIES["special"].sub("", piece) for piece in _REPLIES["end"].split(text))
    text = next((piece for piece in pieces if piece.strip()), "")
    *_, text = _REPLIES["end_of_thoughts"].split(text)
    tagged = dict.fromkeys(match[2].strip() for match in _REPLIES["tagged"].finditer(text))
    return "" if _REPLIES["thoughts"].search(text) else "\n".join(tagged) or text


SPECIES = JudgePrompt(**_WORDINGS["SPECIES"])
PATHOLOGY = JudgePrompt(**_WORDINGS["PATHOLOGY"])
CAPTION_SIMILARITY = Prompt(**_WORDINGS["CAPTION_SIMILARITY"])
ANSWER_SIMILARITY = Prompt(**_WORDINGS["ANSWER_SIMILARITY"])

CLIP_VERSION: int = _WORDINGS["CLIP"]["version"]
PATHOLOGY_CAPTIONS: list[str] = _WORDINGS["CLIP"]["pathology"]
OTHER_CAPTIONS: list[str] = _WORDINGS["CLIP"]["other"]
