"""How far the probabilities of answers can be trusted: calibration, risk against coverage, and thresholds.

Letters in shapes: Q questions, R resamples; weights (R, Q) say how often each question is drawn.

- Expected calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599
- Risk against coverage: Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500; the area under the curve: Geifman,
  Uziel & El-Yaniv 2019, https://arxiv.org/abs/1805.08206
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pallava.evaluation.statistics import NUM_RESAMPLES, Counts, Estimate, Floats, bootstrap, number_images

NUM_BINS = 15
_CHUNK = 4_000_000  # elements of a chunk of draws, which bounds the memory

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """Answers whose probabilities are near each other."""

    count: int
    probability: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Point:
    """Answers that are at least as probable as a threshold."""

    threshold: float
    coverage: float  # their share of all answers
    risk: float  # share of wrong ones among them


def calibration_error(probability: Floats, right: Bools, weights: Counts) -> Floats:
    """Return the expected calibration error (R,) of answers with their probabilities (Q,), as Guo et al. do."""
    gaps = np.eye(NUM_BINS)[_bin_numbers(probability)] * (right - probability)[:, None]  # (Q, bins)
    return np.abs(weights @ gaps).sum(1) / weights.sum(1)


def calibrated_error(probability: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean calibration error, and the range of 95 % of it, of answers that are as often right as they say.

    It is not zero: of few answers, more or fewer are right by chance.
    """
    rng = np.random.default_rng(seed)
    bins = np.eye(NUM_BINS)[_bin_numbers(probability)]
    step = max(1, _CHUNK // len(probability))
    errors = []
    for start in range(0, num_resamples, step):
        drawn = rng.random((min(step, num_resamples - start), len(probability))) < probability
        errors.append(np.abs((drawn - probability) @ bins).sum(1) / len(probability))
    found = np.concatenate(errors)
    return Estimate(float(found.mean()), *map(float, np.quantile(found, [0.025, 0.975])))


def area_under_risk(probability: Floats, right: Bools, weights: Counts) -> Floats:
    """Return the mean, over all k, of the share of wrong answers among the k most probable ones: (R,).

    Answers of equal probability, such as one that is drawn twice, stand in random order, of which this is the mean.
    """
    order = np.argsort(-probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=np.inf))  # of answers of equal probability
    drawn = weights[:, order]
    sizes = np.add.reduceat(drawn, starts, axis=1)  # (R, different probabilities)
    wrong = np.add.reduceat(drawn * ~right[order], starts, axis=1)
    ends, wrong_before = sizes.cumsum(1), wrong.cumsum(1) - wrong
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, ends.max() + 1)))
    # The sum over k from begin + 1 to end of (wrong before + (k - begin) * share) / k.
    begins, share = ends - sizes, wrong / np.maximum(sizes, 1)
    sums = (wrong_before - begins * share) * (harmonic[ends] - harmonic[begins]) + share * sizes
    return sums.sum(1) / ends[:, -1]


def estimate_confidence(
    probability: Floats, right: Bools, images: Sequence[str], **resampling: int
) -> dict[str, Estimate]:
    """Estimate accuracy, calibration error and area under the curve of risk, drawing images with all their questions.

    Returns:
        ``accuracy``, ``ece``, ``aurc``, and the areas if the answers had the best order, and a random one.
    """
    image_of = number_images(images)

    def statistic(weights: Counts) -> Floats:
        drawn = weights[:, image_of]
        values = {
            "accuracy": drawn @ right / drawn.sum(1),
            "ece": calibration_error(probability, right, drawn),
            "aurc": area_under_risk(probability, right, drawn),
            "best order": area_under_risk(right.astype(np.float64), right, drawn),
            "random order": area_under_risk(np.zeros(len(right)), right, drawn),
        }
        return np.stack([values[name] for name in names], axis=1)

    names = ("accuracy", "ece", "aurc", "best order", "random order")
    return dict(zip(names, bootstrap(statistic, int(image_of.max()) + 1, **resampling), strict=True))


def reliability(probability: Floats, right: Bools) -> list[Bin]:
    """Return the bins of the calibration error that hold answers."""
    numbers = _bin_numbers(probability)
    chosen = [numbers == number for number in np.unique(numbers)]
    return [Bin(int(own.sum()), float(probability[own].mean()), float(right[own].mean())) for own in chosen]


def risk_curve(probability: Floats, right: Bools) -> list[Point]:
    """Return a point for each different probability, the highest first; those of equal probability stand together."""
    order = np.argsort(-probability, kind="stable")
    sorted_values = probability[order]
    ends = np.flatnonzero(np.diff(sorted_values, append=-np.inf)) + 1  # number of answers up to each
    wrong = np.cumsum(~right[order])[ends - 1]
    values = zip(sorted_values[ends - 1], ends / max(len(right), 1), wrong / ends, strict=True)
    return [Point(*map(float, each)) for each in values]


def fit_threshold(probability: Floats, right: Bools, wanted: float) -> Point | None:
    """Return the lowest threshold from which on at least the wanted share of answers is right; None if none is."""
    reached = [each for each in risk_curve(probability, right) if 1 - each.risk >= wanted - 1e-9]
    return reached[-1] if reached else None


def split_images(images: Sequence[str], seed: int = 0) -> Bools:
    """Return which questions are in the first half, (Q,): that of their images, so that no image is in both."""
    image_of = number_images(images)
    count = len(np.unique(image_of))
    is_first = np.zeros(count, dtype=np.bool_)
    is_first[np.random.default_rng(seed).permutation(count)[: (count + 1) // 2]] = True
    return is_first[image_of]


def estimate_selection(
    accepted: Bools, right: Bools, images: Sequence[str], **resampling: int
) -> tuple[Estimate, Estimate]:
    """Estimate the accuracy of accepted answers and their share, drawing images; of at least one question."""
    image_of = number_images(images)
    counts = [np.bincount(image_of, each) for each in (accepted & right, accepted, np.ones(len(right)))]

    def statistic(weights: Counts) -> Floats:
        num_right, num_accepted, num_all = (weights @ each for each in counts)
        accuracy = np.where(num_accepted > 0, num_right / np.maximum(num_accepted, 1), np.nan)
        return np.stack([accuracy, num_accepted / num_all], axis=1)

    accuracy, coverage = bootstrap(statistic, len(counts[0]), **resampling)
    return accuracy, coverage


def _bin_numbers(probability: Floats) -> Counts:
    """Return the number of each bin (0, 1/15], (1/15, 2/15], ..., of which the first also holds zero: (Q,)."""
    return np.digitize(probability, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)
