"""Prompts of judges: wordings for language models and captions for CLIPs, from ``prompts.yaml``.

The paper had GLM-4V-9B and Qwen2-7B clean its data and a language model grade its captions, and did not publish its
prompts; these wordings are our own.
"""

import re
from dataclasses import dataclass

from pallava.io.files import read_package_data

MAX_GRADE = 10
"""The best grade; the worst is 0."""

_SCALE = (
    rf"(?:\bon |\bin )?(?:\b(?:a|the) )?(?:\bscale )?\b(?:of|from|between) 0(?: ?[-–] ?| to | and ){MAX_GRADE}\b"
    rf"|\b0 ?(?:[-–]|to) ?{MAX_GRADE}\b|/ ?{MAX_GRADE}\b|\bout of {MAX_GRADE}\b"
)
_GRADE = (
    r"\W*(?:i(?:'d| would)? (?:rate|grade|score|give) (?:it|this)(?: an?)?"
    r"|(?:(?:the|my|final|overall|similarity) )*(?:score|rating|grade|similarity|answer))?(?: is| of| would be)?"
    r"[\s:=*_()\"'\[]*(?<!-)(\d{1,6}(?:\.\d{1,6})?)(?!\d|[.,]\d|\s*%|\s*[-–]\s*\d)"
    r"(?=\s*(?:$|[^\w\s]|points?\b|because\b|since\b))"
)


@dataclass(frozen=True)
class _Prompt:
    version: int
    text: str

    def fill(self, **texts: str) -> str:
        """Return the prompt with these texts inserted for ``{name}``; braces within them are kept."""
        return re.sub(r"\{(\w+)\}", lambda match: texts[match[1]], self.text)


@dataclass(frozen=True)
class JudgePrompt(_Prompt):
    """A question with two possible answers: the pattern of each by its label."""

    labels: dict[str, str]

    def read(self, reply: str) -> str | None:
        """Return the label in a reply, the one at its beginning before others; None if it has none or several."""
        text = re.sub(r"^[\s\W]*(?:(?:the )?(?:final )?answer(?: is)?\b)?[\s\W]*", "", _answer_in(reply))
        for label, pattern in self.labels.items():
            if re.match(rf"(?:{pattern})\b", text):
                return label
        found = [label for label, pattern in self.labels.items() if re.search(rf"\b(?:{pattern})\b", text)]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class GradePrompt(_Prompt):
    """A request for a grade from 0 to `MAX_GRADE`."""

    def read(self, reply: str) -> float | None:
        """Return the grade in a reply, or None if it has none, a range, or one off the scale.

        The grade is at the beginning, or alone in the last line: pathology is full of other numbers ("grade 3").
        """
        lines = re.sub(_SCALE, " ", _answer_in(reply)).strip().splitlines()
        found = lines and (re.match(_GRADE, lines[0]) or re.fullmatch(rf"{_GRADE}\W*", lines[-1]))
        return float(found[1]) if found and float(found[1]) <= MAX_GRADE else None


def _answer_in(reply: str) -> str:
    """Return a reply in lower case without a reasoning model's thoughts; nothing if it ends within them."""
    text = reply.lower().rpartition("</think>")[2]
    return "" if "<think>" in text else text


_WORDINGS = read_package_data(__file__)

SPECIES = JudgePrompt(**_WORDINGS["SPECIES"])
PATHOLOGY = JudgePrompt(**_WORDINGS["PATHOLOGY"])
CAPTION_SIMILARITY = GradePrompt(**_WORDINGS["CAPTION_SIMILARITY"])
ANSWER_SIMILARITY = GradePrompt(**_WORDINGS["ANSWER_SIMILARITY"])

CLIP_VERSION: int = _WORDINGS["CLIP"]["version"]
PATHOLOGY_CAPTIONS: list[str] = _WORDINGS["CLIP"]["pathology"]
OTHER_CAPTIONS: list[str] = _WORDINGS["CLIP"]["other"]
