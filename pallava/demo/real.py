"""Crops of the two real pictures, with captions of what can be measured on them and nothing else."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

_SHADES = {
    "pink": (215, 150, 185),
    "purple": (150, 95, 150),
    "blue": (150, 165, 200),
    "brown": (150, 115, 100),
}


def crops(image: Image.Image, count: int, rng: Generator) -> Iterator[Image.Image]:
    """Cuts pieces of 160 to 400 pixels a side out of a picture, of a shape that the tiling knows.

    A piece of bare glass is left out, so that there may be fewer than `count`.
    """
    for _ in range(count):
        columns, rows = ((2, 2), (3, 2), (2, 3))[rng.integers(3)]
        unit = int(rng.integers(80, 134))
        left = int(rng.integers(max(image.width - columns * unit, 1)))
        top = int(rng.integers(max(image.height - rows * unit, 1)))
        piece = image.crop((left, top, left + columns * unit, top + rows * unit))
        if is_tissue(np.asarray(piece)).mean() >= 0.15:
            yield piece


def measured_caption(stain: str, pixels: NDArray[np.uint8]) -> str:
    """The stain, how much of the picture is tissue, and the tissue's average colour.

    Args:
        stain: Known from where the picture comes from.
        pixels: (R, C, 3).
    """
    tissue = is_tissue(pixels)
    share = int(round(float(tissue.mean()), 1) * 100)
    colour = f", its colour is {colour_name(pixels[tissue].mean(0))}" if tissue.any() else ""
    return f"{stain} stain, tissue fills {share} percent{colour}"


def is_tissue(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(R, C), whether a pixel is coloured or dark rather than bare glass."""
    return (np.ptp(pixels, axis=2) > 22) | (pixels.mean(2) < 190)


def colour_name(colour: NDArray[np.float64]) -> str:
    """The nearest of a few names for a mean colour (3,)."""
    return min(_SHADES, key=lambda name: float(np.square(np.asarray(_SHADES[name]) - colour).sum()))
