"""Metrics of a classification with bootstrap intervals; they agree with scikit-learn's, which a test compares.

Every metric is computed from counts with any number of leading axes, so that all resamples of the bootstrap are
computed at once by the same code as the metric itself. Letters in shapes: N images, C classes, R resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNNAMED = -1
"""Prediction of a model whose answer names no class: wrong whatever the truth is."""

NUM_RESAMPLES = 1000
_CONFIDENCE = 0.95
_CHUNK = 4_000_000  # elements of a chunk of resamples, which bounds the memory

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What a model said of each image, however it was asked.

    Attributes:
        labels: Names of the C classes.
        true: (N,) numbers of the true classes.
        predicted: (N,) numbers of the predicted ones; `UNNAMED` where the answer names none.
        scores: (N, C), of each class the larger the likelier, comparable between images; None of a model that gives
            answers only.
    """

    labels: tuple[str, ...]
    true: Counts
    predicted: Counts
    scores: Floats | None = None


@dataclass(frozen=True)
class Estimate:
    """A metric and the bounds of its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def confusion(predictions: Predictions) -> Counts:
    """Counts of (true class, predicted class): (C, C+1), of which the last column counts answers without a class."""
    return _confusions(predictions, np.arange(len(predictions.true))[None])[0]


def accuracy(counts: Counts) -> Floats:
    """Share of right predictions. From (..., C, C+1), as all of these, to (...)."""
    return _share(_right(counts).sum(-1), counts.sum((-1, -2)))


def balanced_accuracy(counts: Counts) -> Floats:
    """Mean recall of the classes that have images."""
    support = counts.sum(-1)
    return _mean(_right(counts) / np.maximum(support, 1), support > 0)


def macro_f1(counts: Counts) -> Floats:
    """Mean F1 of the classes that have images or predictions."""
    both = _support_and_named(counts)
    return _mean(2 * _right(counts) / np.maximum(both, 1), both > 0)


def micro_f1(counts: Counts) -> Floats:
    """F1 of all decisions taken together; the accuracy, unless some answers name no class."""
    return _share(2 * _right(counts).sum(-1), _support_and_named(counts).sum(-1))


def auroc(true: Counts, scores: Floats, weights: Counts | None = None) -> Floats:
    """Area under the ROC curve, one class against the rest, as the mean of the classes that have both sides.

    Args:
        true: (N,) numbers of the classes.
        scores: (N, C), comparable between images. Ties count one half.
        weights: (R, N), how often each image is taken; default: once.

    Returns:
        (R,); (1,) without weights. NaN where no class has both sides.
    """
    weights = np.ones((1, len(true)), dtype=np.int64) if weights is None else weights
    areas = [_binary_auroc(true == number, scores[:, number], weights) for number in range(scores.shape[1])]
    stacked = np.stack(areas, axis=-1)  # (R, C)
    return _mean(np.nan_to_num(stacked), ~np.isnan(stacked))


METRICS: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
}

DEFINITIONS = {
    "accuracy": "Share of images whose class is named; an answer that names no class is wrong.",
    "balanced_accuracy": "Mean recall of the classes that have images.",
    "macro_f1": "Mean F1 of the classes that have images or predictions.",
    "micro_f1": "F1 of all images together; an answer that names no class is missed, but names no wrong class either.",
    "auroc": "Area under the ROC curve of one class against the rest, ties as one half: mean over the classes.",
}
"""What `METRICS` and the area are."""
PER_CLASS = {
    "precision": "Share of the images named as of the class that are.",
    "recall": "Share of the class's images that are named so.",
    "f1": "Harmonic mean of precision and recall.",
}
"""What `per_class` gives, beside the number of images."""


def estimate_all(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """All metrics with percentile bootstrap intervals, for which images are drawn with replacement."""
    values = _values(predictions, np.arange(len(predictions.true))[None])
    chunks = [_values(predictions, drawn) for drawn in draw(len(predictions.true), num_resamples, seed)]
    return {name: interval(value[0], np.concatenate([c[name] for c in chunks])) for name, value in values.items()}


def per_class(counts: Counts) -> dict[str, Floats]:
    """Precision, recall, F1 and support of each class: (C,) each, zero where nothing is there to count."""
    right, support, named = _right(counts), counts.sum(-1), counts[:, :-1].sum(0)
    return {
        "precision": right / np.maximum(named, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + named, 1),
        "support": support.astype(np.float64),
    }


def draw(count: int, num_resamples: int, seed: int) -> Iterator[Counts]:
    """Indices of bootstrap resamples, a chunk of them at a time: (R, N), chunks of R together `num_resamples`."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(count, 1))
    for start in range(0, num_resamples, step):
        yield rng.integers(count, size=(min(step, num_resamples - start), count))


def interval(value: float, resampled: Floats) -> Estimate:
    """The percentile interval of a metric; resamples in which it is not defined are left out."""
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not resampled.size:
        return Estimate(float(value), float("nan"), float("nan"))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def _values(predictions: Predictions, drawn: Counts) -> dict[str, Floats]:
    """Each metric of resamples whose images are given by index: (R, N) to (R,)."""
    counts = _confusions(predictions, drawn)
    values = {name: metric(counts) for name, metric in METRICS.items()}
    if predictions.scores is not None:
        weights = np.stack([np.bincount(row, minlength=drawn.shape[1]) for row in drawn])
        values["auroc"] = auroc(predictions.true, predictions.scores, weights)
    return values


def _confusions(predictions: Predictions, drawn: Counts) -> Counts:
    """(R, N) indices of images to (R, C, C+1) counts."""
    size = len(predictions.labels)
    column = np.where(predictions.predicted == UNNAMED, size, predictions.predicted)
    cells = (predictions.true * (size + 1) + column)[drawn]  # (R, N)
    cells += np.arange(len(drawn))[:, None] * size * (size + 1)
    counts = np.bincount(cells.ravel(), minlength=len(drawn) * size * (size + 1))
    return counts.reshape(len(drawn), size, size + 1)


def _binary_auroc(positive: NDArray[np.bool_], scores: Floats, weights: Counts) -> Floats:
    """(R,): of the pairs of a positive and a negative, the share in which the positive has the higher score."""
    order = np.argsort(scores, kind="stable")
    own = order[positive[order]]
    taken, of_positive = weights[:, order], weights[:, own]  # (R, N), (R, positives)
    # All below a positive and half of what ties with it, times two; less the positives among them.
    below = _below_twice(scores[order], taken, scores[own])
    below -= _below_twice(scores[own], of_positive, scores[own])
    num_positive, num_all = of_positive.sum(1), taken.sum(1)
    return _share((of_positive * below).sum(1) / 2, num_positive * (num_all - num_positive))


def _below_twice(ordered: Floats, taken: Counts, values: Floats) -> Counts:
    """Weight below each value plus weight up to it: (R, len(values)), where `ordered` has the weights `taken`."""
    total = np.zeros((len(taken), len(ordered) + 1), dtype=np.int64)
    np.cumsum(taken, axis=1, out=total[:, 1:])
    return total[:, np.searchsorted(ordered, values)] + total[:, np.searchsorted(ordered, values, side="right")]


def _right(counts: Counts) -> Counts:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _support_and_named(counts: Counts) -> Counts:
    """Images of each class plus predictions of it."""
    return counts.sum(-1) + counts[..., :-1].sum(-2)


def _share(part: NDArray, whole: NDArray) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: Floats, is_there: NDArray[np.bool_]) -> Floats:
    return _share((values * is_there).sum(-1), is_there.sum(-1))
