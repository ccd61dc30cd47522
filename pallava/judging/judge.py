"""A language model judges how near answers come to their references in meaning, on the published scale of 0 to 10.

Every grade is stored as it comes, under the judge's name and the whole text that it was asked, so that nothing is asked
twice: not after a kill, and not where two models said the same. A judge sees words only, not the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

from tqdm import tqdm

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answered, Item
from pallava.evaluation.statistics import estimate_means
from pallava.io.store import Store
from pallava.judging.endpoint import Answer, Endpoint, Failure, Request
from pallava.judging.prompts import ANSWER_SIMILARITY, CAPTION_SIMILARITY, MAX_GRADE, GradePrompt
from pallava.prompts import CHOICE_LETTERS

Verdict = Literal["graded", "empty", "unreadable", "refused"]
_MAX_REPLY = 200  # characters that are kept
_DEFINITION = (
    f"similarity to the reference, 0 to {MAX_GRADE}, as the judge sees it: mean of all that it graded, where an empty "
    "answer gets 0 unasked; unreadable and refused ones are left out"
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge said of one answer.

    Attributes:
        id: The item's.
        grade: From 0 to 10; None if there is none.
        verdict: "graded"; "empty", which is 0 without asking; "unreadable", if the reply holds no grade; or "refused",
            if the server will not answer this very request.
        reply: The beginning of what the judge said.
    """

    id: str
    grade: float | None
    verdict: Verdict
    reply: str = ""


def judge(answered: Sequence[Answered], endpoint: Endpoint, store: Store) -> list[Judgement]:
    """Has every answer judged that is not judged yet; each grade is stored when it comes.

    Raises:
        UnansweredError: Some requests failed for a passing reason; all others are stored.
        PallavaError: The server cannot be reached, stopped answering, or has no such model.
    """
    judge_key = f"similarity-endpoint/{endpoint.model}/prompts-{CAPTION_SIMILARITY.version}-{ANSWER_SIMILARITY.version}"
    keys = [_key(each) for each in answered]
    asked = {key: each for key, each in zip(keys, answered, strict=True) if each.answer.strip()}
    found = store.get(judge_key, asked.keys())
    missing = [key for key in asked if key not in found]
    requests = [Request(_prompt_text(asked[key])) for key in missing]
    with tqdm(total=len(asked), initial=len(found), desc="judge", disable=None) as bar:
        for index, answer in endpoint.iter_settled(requests):
            found[missing[index]] = score = _read(answer, _prompt(asked[missing[index]].item))
            store.put(judge_key, {missing[index]: score})
            bar.update()
    return [
        Judgement(each.item.id, **found[key]) if key in asked else Judgement(each.item.id, 0.0, "empty")
        for key, each in zip(keys, answered, strict=True)
    ]


def score_judgements(
    judgements: Sequence[Judgement],
    images: Sequence[str] | None = None,
    *,
    num_resamples: int = metrics.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean grade with its interval, and how many there are of each.

    Args:
        judgements: Of all answers.
        images: What each is about, an empty text for none: those of one image are drawn together. Default: none.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        As JSON holds it: ``num_questions``, ``num_unanswered``, ``num_unreadable``, ``num_refused``, ``grades``
        (rounded grade to count), ``interval``, and ``scores`` with ``similarity``: ``value``, ``low``, ``high`` (NaN
        without grades), ``count`` and ``definition``.
    """
    verdicts = Counter(each.verdict for each in judgements)
    of_all = zip(judgements, images or [""] * len(judgements), strict=True)
    graded = [(each.grade, image) for each, image in of_all if each.grade is not None]
    grades, own = [grade for grade, _ in graded], [image for _, image in graded]
    (estimate,) = estimate_means([grades], own, num_resamples=num_resamples, seed=seed)
    rounded = Counter(int(grade + 0.5) for grade in grades)
    return {
        "num_questions": len(judgements),
        "num_unanswered": verdicts["empty"],
        "num_unreadable": verdicts["unreadable"],
        "num_refused": verdicts["refused"],
        "grades": {str(grade): rounded[grade] for grade in range(MAX_GRADE + 1)},
        "scores": {"similarity": {**asdict(estimate), "count": len(grades), "definition": _DEFINITION}},
        "interval": f"95 %, {num_resamples} bootstrap resamples of images with all their graded answers, seed {seed}",
    }


def _prompt(item: Item) -> GradePrompt:
    return CAPTION_SIMILARITY if item.kind == "caption" else ANSWER_SIMILARITY


def _prompt_text(answered: Answered) -> str:
    item = answered.item
    texts = {"question": item.question, "reference": _reference(item), "answer": answered.answer.strip()}
    return _prompt(item).fill(**texts)


def _reference(item: Item) -> str:
    """The right answer in words: of lettered choices, the letter with its text."""
    number = CHOICE_LETTERS.find(item.reference) if item.kind == "choice" and item.reference else -1
    return f"{item.reference}: {item.choices[number]}" if 0 <= number < len(item.choices) else item.reference


def _key(answered: Answered) -> str:
    """Under which a grade is stored: all that the judge is shown, wording included."""
    return sha256(_prompt_text(answered).encode()).hexdigest()


def _read(answer: Answer, prompt: GradePrompt) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"grade": None, "verdict": "refused", "reply": answer.reason[:_MAX_REPLY]}
    grade = prompt.read(answer.text)
    verdict: Verdict = "unreadable" if grade is None else "graded"
    return {"grade": grade, "verdict": verdict, "reply": answer.text[:_MAX_REPLY]}
