"""What the encoder learns from: whole pictures small, and parts of them at full size, each with a caption."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image

from pallava.demo.micrographs import Facts, Region
from pallava.demo.questions import view_caption
from pallava.demo.real import measured_caption
from pallava.tiling import TileSpec

_KINDS_IN_BATCH = 4
"""Pairs of stain and density in a batch: few, so that the rest must tell the captions apart."""
_MAX_TRIES = 4  # times the size of a batch


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


def view_batches(
    pictures: Sequence[Picture], spec: TileSpec, rng: Generator, *, batch_size: int
) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Endless batches of views: two of three with a third of overviews, the others of figures alone.

    Beside everything else that a part shows, a figure is too little to learn from.

    Yields:
        (B, 3, P, P) of float32, normalized, and B captions; fewer than `batch_size` if there are not enough.
    """
    overviews = [_pixels(picture.image, spec.size) for picture in pictures]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    alike = _alike(pictures)
    while True:
        kinds = rng.choice(len(alike), min(_KINDS_IN_BATCH, len(alike)), replace=False)
        pool = np.concatenate([alike[kind] for kind in kinds])
        on_figures = rng.integers(3) == 0
        views: list[np.ndarray] = []
        captions: list[str] = []
        for turn in range(_MAX_TRIES * batch_size):
            index = int(rng.choice(pool))
            picture, is_overview = pictures[index], turn % 3 == 0 and not on_figures
            view, regions = (overviews[index], picture.regions) if is_overview else _part(picture, spec.size, rng)
            caption = _caption(picture, view, regions, overview=is_overview, on_figures=on_figures)
            # No caption twice: the loss would push two views apart that show the same. Figures have two in all.
            if on_figures or caption not in captions:
                views.append(_flip(view, rng))
                captions.append(caption)
            if len(views) == batch_size:
                break
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float()
        yield pixels.div_(255).sub_(mean).div_(std).contiguous(), captions


def _caption(picture: Picture, view: np.ndarray, regions: Sequence[Region], *, overview: bool, on_figures: bool) -> str:
    if picture.facts:
        return view_caption(picture.facts, regions, overview=overview, on_figures=on_figures)
    return measured_caption(picture.stain, view)


def _alike(pictures: Sequence[Picture]) -> list[np.ndarray]:
    """Numbers of the pictures that share stain and density, a list for each such pair."""
    keys = np.array([f"{p.facts.stain} {p.facts.density}" if p.facts else "" for p in pictures])
    return [np.flatnonzero(keys == key) for key in np.unique(keys)]


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
