"""Synthetic micrographs: drawings whose every fact is known. They are not images of tissue.

Two dyes are concentrations, one on nuclei and one on everything else, which the Beer-Lambert law turns into colours, as
in a stained section. A drawing depends on `Facts` and a seed, and on nothing else.
Letters in shapes: R rows and C columns of pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import count

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pallava.io.files import read_package_data

Floats = NDArray[np.float32]

UNIT = 72  # side in pixels of a part that fills one tile
GRIDS = ((3, 2), (2, 3))  # columns and rows of tiles of a picture

_STAINS = read_package_data(__file__)
DYES: dict[str, list[list[float]]] = {name: stain["dyes"] for name, stain in _STAINS.items()}
"""Optical density of red, green and blue for a nucleus and for the matrix, at concentration 1."""
STAIN_SHARES: dict[str, float] = {name: stain["share"] for name, stain in _STAINS.items()}  # of all pictures
DENSITIES = {"sparse": 1.6, "moderate": 4.6, "dense": 11.0}  # nuclei for each 1,000 square pixels
GLAND_COUNTS = {0: "none", 1: "one", 4: "four"}  # possible numbers of glands, and the word for each


@dataclass(frozen=True)
class Facts:
    """The content of a micrograph; stain, density and glands are keys of `DYES`, `DENSITIES` and `GLAND_COUNTS`.

    Inflammation is a cluster of small dark round nuclei. With mitosis the figures in a halo are pairs of dark bars,
    otherwise even smudges that let as much light pass.
    """

    stain: str
    density: str
    glands: int
    necrosis: bool
    inflammation: bool
    mitosis: bool


@dataclass(frozen=True)
class Region:
    """One drawn thing: its kind (gland, necrosis, inflammation or figure), centre and radius in pixels."""

    kind: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Micrograph:
    """A drawing: pixels (R, C, 3) of bytes, its facts, its regions, its grid of columns and rows."""

    pixels: NDArray[np.uint8]
    facts: Facts
    regions: tuple[Region, ...]
    grid: tuple[int, int]


def random_facts(rng: Generator) -> Facts:
    """Draw facts, each attribute independently of the others and, but for the stain, evenly."""
    return Facts(
        stain=str(rng.choice(list(STAIN_SHARES), p=list(STAIN_SHARES.values()))),
        density=str(rng.choice(list(DENSITIES))),
        glands=int(rng.choice(list(GLAND_COUNTS))),
        necrosis=bool(rng.integers(2)),
        inflammation=bool(rng.integers(2)),
        mitosis=bool(rng.integers(2)),
    )


def draw(facts: Facts, rng: Generator) -> Micrograph:
    """Draw one synthetic micrograph; all but its facts is random: grid, places, sizes, colours, noise."""
    grid = GRIDS[rng.integers(len(GRIDS))]
    unit = round(UNIT * rng.uniform(0.97, 1.08))  # one for both sides, so that the grid fits exactly
    width, height = (side * unit for side in grid)
    regions = _place(facts, width, height, rng)
    ground = 0.55 + 0.22 * _smooth_noise(height, width, 14, rng) + 0.12 * _fibres(height, width, rng)
    nuclei = np.zeros((height, width), np.float32)
    _scatter_nuclei(nuclei, DENSITIES[facts.density], regions, rng)
    painters: dict[str, Callable[[Floats, Floats, Region, Generator], None]] = {
        "gland": _paint_gland,
        "necrosis": _paint_necrosis,
        "inflammation": _paint_inflammation,
        "figure": partial(_paint_figure, mitosis=facts.mitosis),
    }
    for region in regions:
        painters[region.kind](nuclei, ground, region, rng)
    nuclear, matrix = (np.asarray(dye, np.float32) * rng.uniform(0.9, 1.1, 3) for dye in DYES[facts.stain])
    density = nuclei[..., None] * nuclear + ground[..., None] * matrix * rng.uniform(0.85, 1.15)  # (R, C, 3)
    pixels = 245.0 * np.exp(-density) + rng.normal(0, 2.0, (height, width, 1))
    return Micrograph(np.clip(pixels, 0, 255).astype(np.uint8), facts, regions, grid)


def _place(facts: Facts, width: int, height: int, rng: Generator) -> tuple[Region, ...]:
    """Place everything without overlap; things shrink if the room is too small."""
    wanted = [("necrosis", 34.0)] * facts.necrosis + [("inflammation", 29.0)] * facts.inflammation
    wanted += [("gland", 23.0)] * facts.glands + [("figure", 8.0)] * int(rng.integers(4, 7))
    placed: list[Region] = []
    for kind, usual in wanted:
        radius = usual * rng.uniform(0.92, 1.1)
        for tries in count(1):
            x, y = (rng.uniform(radius + 2, side - radius - 2) for side in (width, height))
            if all(np.hypot(x - r.x, y - r.y) > radius + r.radius + 3 for r in placed):
                placed.append(Region(kind, x, y, radius))
                break
            if tries % 60 == 0:
                radius *= 0.93
    return tuple(placed)


def _scatter_nuclei(nuclei: Floats, per_thousand: float, regions: tuple[Region, ...], rng: Generator) -> None:
    height, width = nuclei.shape
    step = (1000 / per_thousand) ** 0.5
    ys, xs = np.mgrid[step / 2 : height : step, step / 2 : width : step]
    spots = np.stack([xs.ravel(), ys.ravel()], 1) + rng.uniform(-0.42, 0.42, (xs.size, 2)) * step
    for region in regions:
        distance = np.hypot(spots[:, 0] - region.x, spots[:, 1] - region.y)
        spots = spots[distance > region.radius + 2]
    bank = _nucleus_stamps()
    for x, y in spots:
        _stamp(nuclei, bank[rng.integers(len(bank))], x, y, rng.uniform(0.7, 1.0))


def _paint_gland(nuclei: Floats, ground: Floats, region: Region, rng: Generator) -> None:
    distance = _distance(ground.shape, region)
    _fill(nuclei, ground, _edge(distance - region.radius), 1.05)
    lumen = _edge(distance - region.radius * 0.66)
    ground[:] = ground * (1 - lumen) + lumen * 0.03
    number = round(region.radius * 1.15)
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(number) * 2 * np.pi / number:
        x, y = region.x + 0.85 * region.radius * np.cos(angle), region.y + 0.85 * region.radius * np.sin(angle)
        _stamp(nuclei, _disc_stamp(2.4), x, y, 0.95)


def _paint_necrosis(nuclei: Floats, ground: Floats, region: Region, rng: Generator) -> None:
    height, width = ground.shape
    ragged = _distance(ground.shape, region) + 3.5 * _smooth_noise(height, width, 6, rng)
    inside = _edge((ragged - np.float32(region.radius)) * np.float32(0.5))
    _fill(nuclei, ground, inside, 2.4 + 0.3 * rng.standard_normal(ground.shape).astype(np.float32))
    for _ in range(14):
        angle, reach = rng.uniform(0, 2 * np.pi), region.radius * 0.85 * rng.uniform() ** 0.5
        spot = (region.x + reach * np.cos(angle), region.y + reach * np.sin(angle))
        _stamp(nuclei, _disc_stamp(0.9), *spot, 0.6)


def _paint_inflammation(nuclei: Floats, ground: Floats, region: Region, rng: Generator) -> None:
    number = round(0.040 * np.pi * region.radius**2)
    index = np.arange(number) + 0.5  # a sunflower's spiral: even, without overlap
    reach, angle = region.radius * (index / number) ** 0.5, index * 2.39996 + rng.uniform(0, 6)
    jitter = rng.uniform(-0.9, 0.9, (2, number))
    xs, ys = region.x + reach * np.cos(angle) + jitter[0], region.y + reach * np.sin(angle) + jitter[1]
    for x, y in zip(xs, ys, strict=True):
        _stamp(nuclei, _disc_stamp(2.0), x, y, 1.35)


def _paint_figure(nuclei: Floats, ground: Floats, region: Region, rng: Generator, *, mitosis: bool) -> None:
    """Paint two dark bars, 11 pixels long and 4.4 apart, in a halo: tiles show them, overviews blur them.

    Without mitosis their outline is evenly filled, so that as much light passes in all.
    """
    _fill(nuclei, ground, _edge(_distance(ground.shape, region) - region.radius), 0.4)
    angle = rng.integers(2) * np.pi / 2 + rng.uniform(-0.25, 0.25)
    ys, xs = _offsets(ground.shape, region)
    along, across = np.abs(xs * np.cos(angle) + ys * np.sin(angle)), np.abs(ys * np.cos(angle) - xs * np.sin(angle))
    thickness = np.abs(across - 2.2) - 1.0 if mitosis else across - 3.2
    figure = _edge(np.maximum(along - 5.5, thickness))
    np.maximum(nuclei, (1.7 if mitosis else 0.66) * figure, out=nuclei)


def _fill(nuclei: Floats, ground: Floats, inside: Floats, concentration: float | Floats) -> None:
    """Replace the ground by a concentration and remove nuclei, as far as each pixel is inside."""
    ground[:] = ground * (1 - inside) + inside * concentration
    nuclei[:] *= 1 - inside


def _offsets(shape: tuple[int, ...], region: Region) -> tuple[Floats, Floats]:
    ys = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(region.y)
    xs = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(region.x)
    return ys, xs


def _distance(shape: tuple[int, ...], region: Region) -> Floats:
    return np.hypot(*_offsets(shape, region))


def _edge(signed: Floats) -> Floats:
    """Return the coverage of a pixel from its signed distance to an outline (negative inside)."""
    return np.clip(0.5 - signed, 0, 1)


def _smooth_noise(height: int, width: int, cell: int, rng: Generator) -> Floats:
    """Return bilinear noise of about -1 to 1 whose lumps are `cell` pixels wide, (R, C)."""
    rows, columns = height // cell + 2, width // cell + 2
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    y, x = np.arange(height) / cell, np.arange(width) / cell
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top).astype(np.float32)[:, None], (x - left).astype(np.float32)[None, :]
    across = coarse[:, left] * (1 - right) + coarse[:, left + 1] * right
    return across[top] * (1 - down) + across[top + 1] * down


def _fibres(height: int, width: int, rng: Generator) -> Floats:
    """Return wavy stripes in one direction, (R, C)."""
    angle = rng.uniform(0, np.pi)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    across = xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle))
    return np.sin(across * np.float32(0.55) + 2.5 * _smooth_noise(height, width, 20, rng))


def _stamp(target: Floats, stamp: Floats, x: float, y: float, strength: float) -> None:
    """Put a small square onto the map, keeping the darker of both; parts over the border are cut."""
    half = stamp.shape[0] // 2
    left, top = round(x) - half, round(y) - half
    cut_left, cut_top = max(-left, 0), max(-top, 0)
    window = target[top + cut_top : top + stamp.shape[0], left + cut_left : left + stamp.shape[1]]
    if window.size:
        piece = stamp[cut_top : cut_top + window.shape[0], cut_left : cut_left + window.shape[1]]
        np.maximum(window, piece * np.float32(strength), out=window)


@cache
def _disc_stamp(radius: float) -> Floats:
    half = int(np.ceil(radius)) + 1
    axis = np.arange(-half, half + 1, dtype=np.float32)
    return _edge(np.hypot(axis[:, None], axis[None, :]) - np.float32(radius))


@cache
def _nucleus_stamps() -> tuple[Floats, ...]:
    """Return 64 ellipses of many sizes and directions, the same in every process."""
    rng = np.random.default_rng(0)
    axis = np.arange(-7, 8, dtype=np.float32)
    stamps = []
    for _ in range(64):
        angle, long, short = rng.uniform(0, np.pi), rng.uniform(3.2, 4.8), rng.uniform(2.2, 3.2)
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        xs, ys = axis[None, :] - dx, axis[:, None] - dy
        u, v = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
        stamps.append(_edge((np.hypot(u / long, v / short) - 1) * short).astype(np.float32))
    return tuple(stamps)
