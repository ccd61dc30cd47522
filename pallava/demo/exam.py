"""The held-out questions, put to the converted model with the right image, a wrong one, and without tiles."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pallava.demo.questions import ATTRIBUTES, FINE_DETAIL, TestQuestion
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor

_MAX_NEW_TOKENS = 6

Answers = list[str]


def ask(
    model: PALLaVAForConditionalGeneration,
    processor: PALLaVAProcessor,
    questions: Sequence[TestQuestion],
    images: Sequence[Path],
    *,
    batch_size: int,
    without_tiles: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Answers:
    """Answers questions in batches.

    Args:
        model: The model.
        processor: Its processor.
        questions: What to ask.
        images: The image of each question.
        batch_size: Questions at once.
        without_tiles: Puts the overview in the place of each tile, so that fine detail is gone.
        progress: Gets a line now and then.
    """
    answers: Answers = []
    for start in range(0, len(questions), batch_size):
        texts = [question.question for question in questions[start : start + batch_size]]
        inputs = processor(texts, [str(path) for path in images[start : start + batch_size]])
        if without_tiles:
            inputs["pixel_values"] = repeat_overview(inputs["pixel_values"], inputs["tiles_per_image"])
        with torch.inference_mode():
            answers += processor.batch_decode(model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS))
        progress(f"{len(answers)} of {len(questions)} questions")
    return answers


def repeat_overview(pixel_values: torch.Tensor, tiles_per_image: torch.Tensor) -> torch.Tensor:
    """Replaces every tile by its image's overview: (sum of 1+N, 3, P, P) to the same shape."""
    stacks = pixel_values.split(tiles_per_image.tolist())
    return torch.cat([stack[:1].expand_as(stack) for stack in stacks])


def shuffled(questions: Sequence[TestQuestion], num_pictures: int) -> list[int]:
    """For each question the number of a picture that is not its own, all of them equally often."""
    shift = max(1, num_pictures // 2)
    return [(question.picture + shift) % num_pictures for question in questions]


def is_right(answer: str, truth: str) -> bool:
    """Exact equality, but for case, outer spaces and a full stop."""
    return answer.strip().rstrip(".").lower() == truth.lower()


def score(
    questions: Sequence[TestQuestion], answers: Answers, answers_shuffled: Answers, without_tiles: Answers
) -> dict[str, Any]:
    """The figures of ``report.json``, seconds aside.

    Args:
        questions: All held-out questions.
        answers: To each, with its own image.
        answers_shuffled: To the closed ones, with another image.
        without_tiles: To those on the fine detail alone, with the tiles replaced by the overview.
    """
    right = [is_right(a, q.answer) for q, a in zip(questions, answers, strict=True)]
    asked_closed = [q for q in questions if q.closed]
    wrong_image = [is_right(a, q.answer) for q, a in zip(asked_closed, answers_shuffled, strict=True)]
    fine = [q for q in questions if q.attribute == FINE_DETAIL]
    fine_right = [is_right(a, q.answer) for q, a in zip(fine, without_tiles, strict=True)]
    closed, open_ = [q.closed for q in questions], [not q.closed for q in questions]
    most_frequent = Counter(q.answer for q in asked_closed).most_common(1)
    return {
        "closed_accuracy": _share(right, closed),
        "closed_accuracy_shuffled": _share(wrong_image, [True] * len(asked_closed)),
        "closed_accuracy_majority": round(most_frequent[0][1] / len(asked_closed), 4),
        "open_exact_match": _share(right, open_),
        "attribute_accuracy": {name: _share(right, (q.attribute == name for q in questions)) for name in ATTRIBUTES},
        "fine_detail_accuracy": {
            "with_tiles": _share(right, (q.attribute == FINE_DETAIL for q in questions)),
            "tiles_replaced_by_overview": _share(fine_right, [True] * len(fine)),
        },
        "num_questions": len(questions),
    }


def _share(right: Sequence[bool], chosen: Iterable[bool]) -> float:
    picked = [r for r, is_chosen in zip(right, chosen, strict=True) if is_chosen]
    return round(sum(picked) / len(picked), 4) if picked else float("nan")
