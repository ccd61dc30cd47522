"""What the encoder learns from: whole pictures small, and parts of them at full size, each with a caption."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.random import Generator
from PIL import Image

from pallava.demo.micrographs import Facts, Region
from pallava.demo.questions import view_caption
from pallava.demo.real import measured_caption


@dataclass(frozen=True)
class Picture:
    """A picture with what is known of it.

    Attributes:
        image: The opened picture.
        facts: What it shows; nothing for a real one.
        regions: Where things are.
        columns: Tiles across, of the canvas that it is drawn for.
        stain: Of a real picture, whose other facts are measured.
    """

    image: Image.Image
    facts: Facts | None
    regions: tuple[Region, ...]
    columns: int
    stain: str = ""


def views(pictures: Sequence[Picture], size: int, rng: Generator) -> Iterator[tuple[np.ndarray, str]]:
    """Endless views, turned over at random: a third of them on figures alone, a third of the others overviews.

    Beside everything else that a part shows, a figure is too little to learn from.

    Args:
        pictures: Taken in turn.
        size: Side of a view in pixels.
        rng: Chooses parts and kinds.

    Yields:
        (P, P, 3) of uint8, and a caption.
    """
    for picture in cycle(pictures):
        on_figures = rng.integers(3) == 0
        is_overview = not on_figures and rng.integers(3) == 0
        view, regions = (_pixels(picture.image, size), picture.regions) if is_overview else _part(picture, size, rng)
        yield _flip(view, rng), _caption(picture, view, regions, overview=is_overview, on_figures=on_figures)


def _caption(picture: Picture, view: np.ndarray, regions: Sequence[Region], *, overview: bool, on_figures: bool) -> str:
    if picture.facts:
        return view_caption(picture.facts, regions, overview=overview, on_figures=on_figures)
    return measured_caption(picture.stain, view)


def _part(picture: Picture, size: int, rng: Generator) -> tuple[np.ndarray, list[Region]]:
    """A square of the size of a tile, around a figure in two of three cases."""
    side = picture.image.width / picture.columns
    limits = picture.image.width - side, picture.image.height - side
    figures = [region for region in picture.regions if region.kind == "figure"]
    left, top = (rng.uniform(0, max(limit, 0)) for limit in limits)
    if figures and rng.integers(3):
        figure = figures[rng.integers(len(figures))]
        reach = side / 2 - figure.radius
        left, top = (
            float(np.clip(centre + rng.uniform(-reach, reach) - side / 2, 0, max(limit, 0)))
            for centre, limit in zip((figure.x, figure.y), limits, strict=True)
        )
    inside = [r for r in picture.regions if 0 <= r.x - left < side and 0 <= r.y - top < side]
    box = (left, top, left + side, top + side)
    return _pixels(picture.image, size, box), inside


def _pixels(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _flip(view: np.ndarray, rng: Generator) -> np.ndarray:
    rows, columns = rng.integers(2, size=2) * 2 - 1
    return view[::rows, ::columns]
