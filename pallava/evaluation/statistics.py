"""Metrics and means with bootstrap intervals; the metrics equal scikit-learn's, with which a test compares them.

`bootstrap` computes a statistic of all resamples at once by the same code as the statistic itself. Letters in shapes:
N images, C classes, R resamples, Q questions, S rows of values, K values of a statistic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pallava.io.files import read_package_data

UNNAMED = -1
"""Predicted number for an answer that names no class: wrong whatever the truth is."""

DEFINITIONS: dict[str, dict[str, str]] = read_package_data(__file__)
"""Definitions of scores by name, of each kind of scores."""

NUM_RESAMPLES = 1000
_CONFIDENCE = 0.95
_CHUNK = 4_000_000  # elements of a chunk of resamples, which bounds the memory

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """The true and the predicted class of each image, by an encoder or by answers."""

    labels: tuple[str, ...]  # names of the C classes
    true: Counts  # (N,) numbers of the true classes
    predicted: Counts  # (N,) numbers of the predicted ones; `UNNAMED` for an answer that names none
    scores: Floats | None = None  # (N, C), the larger the likelier, comparable between images; None for mere answers


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95 % interval; NaN if they are not defined."""

    value: float
    low: float
    high: float

    def to_dict(self, count: int, definition: str) -> dict[str, Any]:
        """Return the estimate as reports hold it: with the number of things that it is over, and its definition."""
        return {**asdict(self), "count": count, "definition": definition}


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


def as_control(scores: Mapping[str, Mapping[str, Any]], definition: str) -> dict[str, dict[str, Any]]:
    """Return scores of a control, whose definition is added to that of each score."""
    added = {}
    for name, score in scores.items():
        own = score["definition"].rstrip(".")
        added[name] = {**score, "definition": f"{own}; {definition}{score['definition'][len(own) :]}"}
    return added


def describe_interval(things: str, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> str:
    """Return in words what the intervals of a bootstrap are."""
    return f"95 %, {num_resamples} bootstrap resamples of {things}, seed {seed}"


def bootstrap(
    statistic: Callable[[Counts], Floats], count: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """Estimate K values with percentile intervals by drawing `count` (at least 1) things with replacement.

    The statistic computes values (R, K) of weights (R, count): how often each thing is drawn. Resamples in which a
    value is not defined (NaN) are left out of its interval.
    """
    values = statistic(np.ones((1, count), dtype=np.int64))[0]
    resampled = np.concatenate([statistic(_times_drawn(drawn)) for drawn in draw(count, num_resamples, seed)])
    return [_interval(float(value), column) for value, column in zip(values, resampled.T, strict=True)]


def estimate_means(values: ArrayLike, images: Sequence[str], **resampling: int) -> list[Estimate]:
    """Estimate the mean of each row of values (S, Q), drawing images with all their questions; NaN without questions.

    Questions about one image are not independent: drawing them one by one would make intervals too narrow. A question
    without an image (an empty name) counts as one about an image of its own.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(images):
        return [UNDEFINED for _ in rows]
    image_of = number_images(images)
    counts = np.bincount(image_of)
    sums = np.stack([np.bincount(image_of, row, len(counts)) for row in rows], axis=1)  # (images, S)
    return bootstrap(lambda weights: weights @ sums / (weights @ counts)[:, None], len(counts), **resampling)


def number_images(images: Sequence[str]) -> Counts:
    """Return the number of each question's image, (Q,), in the order of names; without one (empty) its own."""
    named = [image or f"\0{number}" for number, image in enumerate(images)]
    return np.unique(named, return_inverse=True)[1]


def estimate_all(predictions: Predictions, **resampling: int) -> dict[str, Estimate]:
    """Estimate all metrics of a classification, drawing images."""
    names = [name for name in DEFINITIONS["metrics"] if name != "auroc" or predictions.scores is not None]

    def statistic(weights: Counts) -> Floats:
        values = score_counts(_confusions(predictions, weights))
        if predictions.scores is not None:
            values["auroc"] = auroc(predictions.true, predictions.scores, weights)
        return np.stack([values[name] for name in names], axis=1)

    return dict(zip(names, bootstrap(statistic, len(predictions.true), **resampling), strict=True))


def confusion(predictions: Predictions) -> Counts:
    """Count (true class, predicted class): (C, C+1), whose last column counts answers without a class."""
    return _confusions(predictions, np.ones((1, len(predictions.true)), dtype=np.int64))[0]


def score_counts(counts: Counts) -> dict[str, Floats]:
    """Return the metrics of counts (..., C, C+1), each (...), as `DEFINITIONS` says."""
    right, support = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)
    both = support + counts[..., :-1].sum(-2)  # images of each class plus predictions of it
    return {
        "accuracy": _share(right.sum(-1), counts.sum((-1, -2))),
        "balanced_accuracy": _mean(right / np.maximum(support, 1), support > 0),
        "macro_f1": _mean(2 * right / np.maximum(both, 1), both > 0),
        "micro_f1": _share(2 * right.sum(-1), both.sum(-1)),
    }


def auroc(true: Counts, scores: Floats, weights: Counts) -> Floats:
    """Return the area under the ROC curve, one class against the rest: the mean of the classes that have both sides.

    It is (R,), NaN if no class has both sides, of weights (R, N): how often each image is drawn.
    Scores are (N, C), comparable between images; ties count one half.
    """
    areas = [_binary_auroc(true == number, scores[:, number], weights) for number in range(scores.shape[1])]
    stacked = np.stack(areas, axis=-1)  # (R, C)
    return _mean(np.nan_to_num(stacked), ~np.isnan(stacked))


def per_class(counts: Counts) -> dict[str, Floats]:
    """Return precision, recall, F1 and support of each class: (C,) each, zero for an empty class."""
    right, support, named = counts.diagonal(), counts.sum(-1), counts[:, :-1].sum(0)
    return {
        "precision": right / np.maximum(named, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + named, 1),
        "support": support.astype(np.float64),
    }


def draw(count: int, num_resamples: int, seed: int) -> Iterator[Counts]:
    """Yield indices of bootstrap resamples, a chunk at a time: (R, count), chunks of R together `num_resamples`."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, num_resamples, step):
        yield rng.integers(count, size=(min(step, num_resamples - start), count))


def _times_drawn(drawn: Counts) -> Counts:
    return np.stack([np.bincount(row, minlength=drawn.shape[1]) for row in drawn])


def _interval(value: float, resampled: Floats) -> Estimate:
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not resampled.size:
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _confusions(predictions: Predictions, weights: Counts) -> Counts:
    """Weights (R, N) of images to (R, C, C+1) counts."""
    size = len(predictions.labels)
    column = np.where(predictions.predicted == UNNAMED, size, predictions.predicted)
    cells = predictions.true * (size + 1) + column + np.arange(len(weights))[:, None] * size * (size + 1)  # (R, N)
    counts = np.bincount(cells.ravel(), weights.ravel(), minlength=len(weights) * size * (size + 1))
    return counts.astype(np.int64).reshape(len(weights), size, size + 1)


def _binary_auroc(positive: NDArray[np.bool_], scores: Floats, weights: Counts) -> Floats:
    """(R,): of the pairs of a positive and a negative, the share in which the positive has the higher score."""
    order = np.argsort(scores, kind="stable")
    negative = order[~positive[order]]
    counts = np.pad(weights[:, negative].cumsum(1), ((0, 0), (1, 0)))  # (R, negatives + 1): the weight of the lowest
    below = counts[:, np.searchsorted(scores[negative], scores[positive])]
    up_to = counts[:, np.searchsorted(scores[negative], scores[positive], side="right")]
    own = weights[:, positive]
    return _share((own * (below + up_to)).sum(1) / 2, own.sum(1) * counts[:, -1])


def _share(part: NDArray, whole: NDArray) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: Floats, is_there: NDArray[np.bool_]) -> Floats:
    return _share((values * is_there).sum(-1), is_there.sum(-1))
