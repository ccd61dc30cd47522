"""Means over questions, with intervals for which images are drawn with all their questions.

Questions about one image are not independent: to draw them one by one would make intervals too narrow. Letters in
shapes: S rows of values, Q questions, I images, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pallava.evaluation import statistics as metrics
from pallava.evaluation.statistics import Counts, Estimate, Floats


def estimate_means(
    values: ArrayLike, images: Sequence[str], *, num_resamples: int = metrics.NUM_RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """The mean of each row with its bootstrap interval; NaN of nothing.

    Args:
        values: (S, Q).
        images: Of each question; one without an image, an empty text, stands for itself.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(images):
        return [Estimate(*[float("nan")] * 3) for _ in rows]
    sums, counts = _by_image(images, rows)
    drawn = metrics.draw(len(counts), num_resamples, seed)
    resampled = np.concatenate([_resampled_means(sums, counts, chunk) for chunk in drawn], axis=1)
    return [metrics.interval(float(value), means) for value, means in zip(rows.mean(1), resampled, strict=True)]


def _by_image(images: Sequence[str], values: Floats) -> tuple[Floats, Counts]:
    """Sums of values over the questions about each image, (S, I), and their number, (I,)."""
    named = [image or f"\0{number}" for number, image in enumerate(images)]
    _, image_of, counts = np.unique(named, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(image_of, row, len(counts)) for row in values]), counts


def _resampled_means(sums: Floats, counts: Counts, drawn: Counts) -> Floats:
    """Means over all questions about the images of each resample: (S, I), (I,) and (R, I) to (S, R)."""
    return np.stack([sums[:, images].sum(1) / counts[images].sum() for images in drawn], axis=1)
