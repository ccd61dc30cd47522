"""Answers with their probabilities: how well these are calibrated, and from which one on answers are right enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pallava.evaluation.answers.items import Answer
from pallava.evaluation.calibration import (
    Bools,
    Floats,
    calibrated_error,
    estimate_confidence,
    estimate_selection,
    fit_threshold,
    reliability,
    risk_curve,
    split_images,
)
from pallava.evaluation.statistics import DEFINITIONS, UNDEFINED, Counts, as_control, number_images

WANTED = (0.8, 0.9, 0.95, 0.99)
"""Accuracies for which a threshold is sought."""

ALL = "all"
"""Name of the answers of all kinds together."""

_NUM_POINTS = 101  # of a curve at most
_MEANING, _CONTROLS = DEFINITIONS["confidence"], DEFINITIONS["confidence_controls"]


@dataclass(frozen=True)
class _Sample:
    """Questions with the probabilities of their answers: (Q,) each."""

    kinds: NDArray[np.str_]
    images: NDArray[np.str_]
    probability: Floats
    right: Bools
    num_possible: Counts
    is_fitted: Bools  # whether the question is in the half by which thresholds are fitted

    def select(self, chosen: Bools) -> "_Sample":
        return _Sample(*(getattr(self, field.name)[chosen] for field in fields(self)))


def score_confidence(
    answers: Sequence[Answer], is_right: Callable[[Answer], bool], *, seed: int = 0, **bootstrap: int
) -> dict[str, Any]:
    """Compare probabilities with what is right, for all kinds of questions together and for each of several.

    Answers without a probability, which must not be all, are left out: their image could not be opened. Thresholds are
    fitted on one half of the images, which `seed` chooses, and what they do is reported on the other.

    Returns:
        ``confidence``: ``num_left_out``, and by kind scores, controls, the curve of risk and the bins of calibration;
        ``thresholds``: the number of images of both halves, and by kind a result for each of `WANTED`, whose threshold
        is NaN if none reaches the wanted accuracy.
    """
    weighed = _weigh(answers, is_right, seed)
    found = list(dict.fromkeys(weighed.kinds.tolist()))
    by_kind = {ALL: weighed}
    if len(found) > 1:
        by_kind |= {kind: weighed.select(weighed.kinds == kind) for kind in found}
    how = {"seed": seed, **bootstrap}
    halves = [weighed.images[weighed.is_fitted == is_fitted] for is_fitted in (True, False)]
    return {
        "confidence": {
            "num_left_out": len(answers) - len(weighed.right),
            "kinds": {kind: _score(own, how) for kind, own in by_kind.items()},
        },
        "thresholds": {
            "num_images": [len(np.unique(number_images(half.tolist()))) for half in halves],
            "kinds": {kind: [_threshold(wanted, own, how) for wanted in WANTED] for kind, own in by_kind.items()},
        },
    }


def _weigh(answers: Sequence[Answer], is_right: Callable[[Answer], bool], seed: int) -> _Sample:
    given = [each for each in answers if each.probability is not None]
    images = [each.item.image for each in given]
    return _Sample(
        np.array([each.item.kind for each in given], dtype=np.str_),
        np.array(images, dtype=np.str_),
        np.array([each.probability for each in given], dtype=np.float64),
        np.array([is_right(each) for each in given], dtype=np.bool_),
        np.array([each.num_possible for each in given], dtype=np.int64),
        split_images(images, seed),
    )


def _score(own: _Sample, how: Mapping[str, int]) -> dict[str, Any]:
    count, probability, right = len(own.right), own.probability, own.right
    found = estimate_confidence(probability, right, own.images.tolist(), **how)
    scores = {name: found[name].to_dict(count, _MEANING[name]) for name in ("accuracy", "ece", "aurc")}
    controls = {name: {"aurc": found[name].to_dict(count, _MEANING["aurc"])} for name in ("best order", "random order")}
    controls["calibrated"] = {"ece": calibrated_error(probability, **how).to_dict(count, _MEANING["ece"])}
    curve = risk_curve(probability, right)
    points = np.unique(np.linspace(0, len(curve) - 1, _NUM_POINTS).round().astype(int))
    return {
        "count": count,
        "num_among": int((own.num_possible > 0).sum()),
        "scores": scores,
        "controls": {name: as_control(each, _CONTROLS[name]) for name, each in controls.items()},
        "curve": [asdict(curve[number]) for number in points],
        "bins": [asdict(each) for each in reliability(probability, right)],
    }


def _threshold(wanted: float, own: _Sample, how: Mapping[str, int]) -> dict[str, Any]:
    """Fit a threshold on one half, and report what it does on the other."""
    fitted, others = own.select(own.is_fitted), own.select(~own.is_fitted)
    point = fit_threshold(fitted.probability, fitted.right, wanted)
    accuracy, coverage, num_accepted = UNDEFINED, UNDEFINED, 0
    if point and len(others.right):
        accepted = others.probability >= point.threshold
        accuracy, coverage = estimate_selection(accepted, others.right, others.images.tolist(), **how)
        num_accepted = int(accepted.sum())
    return {
        "wanted": wanted,
        "is_reached": point is not None,
        "threshold": point.threshold if point else float("nan"),
        "fitted": {
            "count": len(fitted.right),
            "accuracy": 1 - point.risk if point else float("nan"),
            "coverage": point.coverage if point else float("nan"),
        },
        "accuracy": accuracy.to_dict(num_accepted, _MEANING["selective_accuracy"]),
        "coverage": coverage.to_dict(len(others.right), _MEANING["coverage"]),
    }
