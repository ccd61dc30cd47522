"""Whether an answer stays the same when the image changes in a way that means nothing; needs no right answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answered
from pallava.evaluation.statistics import estimate_means

_NO_WORD = re.compile(r"[\W_]+")
_SAME = "share of answers that equal the one on the unchanged image, case and punctuation aside"
_RIGHT = "share of right answers on the changed image"

IsRight = Callable[[Answered], bool]


def score_consistency(
    as_is: Sequence[Answered],
    changed: Mapping[str, Sequence[Answered]],
    is_right: IsRight | None = None,
    *,
    unopened: Collection[str] = (),
    num_resamples: int = metrics.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares answers on changed images with those on the unchanged ones.

    Args:
        as_is: Questions with their answers.
        changed: By the name of the change, the same questions answered on changed images; some may be missing.
        is_right: What makes an answer right; None where nothing does.
        unopened: Images that could not be opened; their questions were not asked, and are left out.
        num_resamples: Of the bootstrap, for which images are drawn with all their questions.
        seed: Of the bootstrap.

    Returns:
        ``same`` and, where there is a right answer, ``accuracy``: each by the name of the change, ``unchanged`` and
        ``all`` among them, an estimate as `share` gives it. ``num_empty`` counts the empty answers of each,
        ``num_left_out`` the questions that are left out.
    """
    how = {"num_resamples": num_resamples, "seed": seed}
    answers = {
        name: [each for each in given if each.item.image not in unopened]
        for name, given in {"unchanged": as_is, **changed}.items()
    }
    before = {each.item.id: each for each in answers["unchanged"]}
    same = {
        name: [_words(each.answer) == _words(before[each.item.id].answer) for each in answers[name]] for name in changed
    }
    result: dict[str, Any] = {
        "same": {name: share(values, _images(answers[name]), _SAME, **how) for name, values in same.items()},
        "num_empty": {name: sum(not each.answer.strip() for each in given) for name, given in answers.items()},
        "num_left_out": len(as_is) - len(before),
    }
    equal = _under_all(same, answers)
    asked_again = [each for each in before.values() if each.item.id in equal]
    values = [equal[each.item.id] for each in asked_again]
    result["same"]["all"] = share(values, _images(asked_again), f"{_SAME}, under every change", **how)
    if is_right is not None:
        result["accuracy"] = {
            name: share(
                [is_right(each) for each in given],
                _images(given),
                _RIGHT if name in changed else "share of right answers",
                **how,
            )
            for name, given in answers.items()
        }
    return result


def share(
    values: Sequence[bool],
    images: Sequence[str],
    definition: str,
    *,
    num_resamples: int = metrics.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """A share with its bootstrap interval, for which images are drawn with all their questions.

    Args:
        values: Of each question.
        images: Of each question; an empty text where there is none.
        definition: What it is a share of.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``value``, ``low``, ``high``, ``count``, ``definition``; NaN of nothing.
    """
    (estimate,) = estimate_means([values], images, num_resamples=num_resamples, seed=seed)
    return {**asdict(estimate), "count": len(values), "definition": definition}


def share_by_group(
    answered: Sequence[Answered], is_right: IsRight, *, num_resamples: int = metrics.NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The share of right answers in each group, in the order in which groups first come; nothing without groups."""
    groups: dict[str, list[Answered]] = {}
    for each in answered:
        if each.item.group:
            groups.setdefault(each.item.group, []).append(each)
    how = {"num_resamples": num_resamples, "seed": seed}
    return {
        name: share([is_right(each) for each in own], _images(own), "share of right answers", **how)
        for name, own in groups.items()
    }


def _under_all(same: Mapping[str, Sequence[bool]], answers: Mapping[str, Sequence[Answered]]) -> dict[str, bool]:
    """By the id of each question that was asked again, whether all its answers are the same."""
    equal: dict[str, bool] = {}
    for name, values in same.items():
        for each, is_same in zip(answers[name], values, strict=True):
            equal[each.item.id] = equal.get(each.item.id, True) and is_same
    return equal


def _images(answered: Sequence[Answered]) -> list[str]:
    return [each.item.image for each in answered]


def _words(answer: str) -> str:
    return _NO_WORD.sub(" ", answer.casefold()).strip()
