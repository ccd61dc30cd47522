"""Whether an answer stays the same when the image changes in a way that means nothing; needs no right answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pallava.evaluation import metrics
from pallava.evaluation.items import Answered

_NO_WORD = re.compile(r"[\W_]+")
_SAME = "share of answers that equal the one on the unchanged image, case and punctuation aside"
_RIGHT = "share of right answers on the changed image"

IsRight = Callable[[Answered], bool]


def score_consistency(
    as_is: Sequence[Answered],
    changed: Mapping[str, Sequence[Answered]],
    is_right: IsRight | None = None,
    *,
    num_resamples: int = metrics.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares answers on changed images with those on the unchanged ones.

    Args:
        as_is: Questions with their answers.
        changed: By the name of the change, the same questions answered on changed images; some may be missing.
        is_right: What makes an answer right; None where nothing does.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``same`` and, where there is a right answer, ``accuracy``: each by the name of the change, ``unchanged`` and
        ``all`` among them, an estimate as `share` gives it.
    """
    how = {"num_resamples": num_resamples, "seed": seed}
    before = {each.item.id: each for each in as_is}
    same = {
        name: [_words(each.answer) == _words(before[each.item.id].answer) for each in answers]
        for name, answers in changed.items()
    }
    result = {"same": {name: share(values, _SAME, **how) for name, values in same.items()}}
    result["same"]["all"] = share(_of_all(as_is, changed, same), f"{_SAME}, under every change", **how)
    if is_right is not None:
        answers = {"unchanged": as_is, **changed}
        result["accuracy"] = {
            name: share([is_right(one) for one in each], _RIGHT if name in changed else "share of right answers", **how)
            for name, each in answers.items()
        }
    return result


def share(
    values: Sequence[bool], definition: str, *, num_resamples: int = metrics.NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """A share with its bootstrap interval: ``value``, ``low``, ``high``, ``count``, ``definition``; NaN of nothing."""
    hits = np.asarray(values, dtype=np.float64)
    if not hits.size:
        estimate = metrics.Estimate(float("nan"), float("nan"), float("nan"))
    else:
        resampled = np.concatenate([hits[drawn].mean(1) for drawn in metrics.draw(len(hits), num_resamples, seed)])
        estimate = metrics.interval(float(hits.mean()), resampled)
    return {**asdict(estimate), "count": len(hits), "definition": definition}


def share_by_group(
    answered: Sequence[Answered], is_right: IsRight, *, num_resamples: int = metrics.NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The share of right answers in each group, in the order in which groups first come; nothing without groups."""
    groups: dict[str, list[bool]] = {}
    for each in answered:
        if each.item.group:
            groups.setdefault(each.item.group, []).append(is_right(each))
    how = {"num_resamples": num_resamples, "seed": seed}
    return {name: share(values, "share of right answers", **how) for name, values in groups.items()}


def _of_all(
    as_is: Sequence[Answered], changed: Mapping[str, Sequence[Answered]], same: Mapping[str, Sequence[bool]]
) -> list[bool]:
    """Of each question that was asked again, whether all its answers are the same."""
    equal: dict[str, bool] = {}
    for name, answers in changed.items():
        for each, is_same in zip(answers, same[name], strict=True):
            equal[each.item.id] = equal.get(each.item.id, True) and is_same
    return [equal[each.item.id] for each in as_is if each.item.id in equal]


def _words(answer: str) -> str:
    return _NO_WORD.sub(" ", answer.casefold()).strip()
