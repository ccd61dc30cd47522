"""Which tiles the connector reads: those with the drawn things, or any?

The pointing game on held-out synthetic micrographs, where the place of every thing is known. A share is of the
attention; `chance` is what an even spread gives, `elsewhere` the share with the attention paid to another picture.
Letters in shapes: K layers with cross-attention, T tokens of a tile, N tiles, I images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pallava.demo import Progress
from pallava.demo.material import Picture, read_pictures
from pallava.evaluation.statistics import Estimate, bootstrap
from pallava.model import PALLaVAProcessor
from pallava.model.attention import load_eyes, read_tiles
from pallava.tiling import TileSpec, choose_canvas, make_tiles, place_on_canvas

Spot = tuple[float, float]
"""Place of a thing: x and y in pixels of the image."""


@dataclass(frozen=True)
class ReadImage:
    """The attention paid to one image, and the places of the things on it.

    Attributes:
        attention: (K, T, N, T), from `pallava.model.attention.read_tiles`.
        image_size: (width, height) in pixels.
        spots: Places of the things, at least one.
    """

    attention: Tensor
    image_size: tuple[int, int]
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Pointing:
    """A share of attention over images, beside its value by chance and with another image's attention.

    Attributes:
        share: Share of the attention, with its bootstrap interval.
        chance: The share if attention were spread evenly.
        elsewhere: The share with the attention paid to another image of the same canvas: more than chance if the model
            prefers some places whatever they show. None if no image has a partner.
    """

    share: Estimate
    chance: float
    elsewhere: float | None


def measure(data: Path, model: Path, progress: Progress) -> dict[str, Any]:
    """Read the held-out pictures; return the content of ``pointing.json``.

    Returns:
        ``kinds``: for each kind of thing that is drawn the number of pictures and the results of `play`; ``most_read``:
        by the name of a picture the number of the tile that was read most.
    """
    eyes, spec = load_eyes(model), PALLaVAProcessor.from_pretrained(model).tile_spec
    reads: dict[str, list[ReadImage]] = {}
    most_read = {}
    pictures = read_pictures(data, "test")
    for number, picture in enumerate(pictures, 1):
        attention = read_tiles(eyes, make_tiles(picture.image, spec))
        most_read[picture.path.name] = int(attention.sum((0, 1, 3)).argmax())
        for kind, spots in things_of(picture):
            reads.setdefault(kind, []).append(ReadImage(attention, picture.image.size, spots))
        if number % 40 == 0:
            progress(f"{number} of {len(pictures)} pictures read")
    kinds = {
        kind: {"num_pictures": len(own), **{name: asdict(found) for name, found in play(own, spec).items()}}
        for kind, own in sorted(reads.items())
    }
    return {"kinds": kinds, "most_read": most_read}


def things_of(picture: Picture) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    """Yield the kinds of things on a picture with their places; figures are mitotic or only smudges."""
    for kind in np.unique([region.kind for region in picture.regions]):
        spots = tuple((region.x, region.y) for region in picture.regions if region.kind == kind)
        if kind == "figure":
            kind = "mitotic figure" if picture.facts and picture.facts.mitosis else "smudge like one"
        yield str(kind), spots


def play(reads: Sequence[ReadImage], spec: TileSpec, *, seed: int = 0) -> dict[str, Pointing]:
    """Play the pointing game, with a bootstrap over images.

    Returns:
        ``right_tile``: the share of the attention of the overview token over a thing that goes to the thing's tile.
        ``tiles``: the share of all attention on tiles with a thing. ``tokens``: the share on tokens with one. ``hits``:
        how often the tile that was read most has one. Each is a mean over the things of an image, then over images.
    """
    places = [_find_places(read, spec) for read in reads]
    own = [_shares(read.attention, place) for read, place in zip(reads, places, strict=True)]
    partners = _partners(places)
    other = [_shares(reads[b].attention, place) for place, b in zip(places, partners, strict=True) if b is not None]
    found = {}
    for name in own[0]:
        shares = np.array([[image[name][0]] for image in own])  # (I, 1)
        (share,) = bootstrap(lambda weights: weights @ shares / len(shares), len(shares), seed=seed)  # noqa: B023
        chance = float(np.mean([image[name][1] for image in own]))
        found[name] = Pointing(share, chance, float(np.mean([s[name][0] for s in other])) if other else None)
    return found


class _Places(NamedTuple):
    """The tile of each thing, its token in that tile, and the token of the overview that covers it."""

    grid: tuple[int, int]
    tiles: list[int]
    tokens: list[int]
    overview_tokens: list[int]


def _find_places(read: ReadImage, spec: TileSpec) -> _Places:
    canvas = choose_canvas(read.image_size, spec.size)
    left, top, width, height = place_on_canvas(read.image_size, canvas)
    columns, rows, side = canvas[0] // spec.size, canvas[1] // spec.size, round(read.attention.shape[-1] ** 0.5)
    places = _Places((columns, rows), [], [], [])
    for spot in read.spots:
        share_x, share_y = (min(max(v / s, 0.0), 1 - 1e-9) for v, s in zip(spot, read.image_size, strict=True))
        column, in_x = divmod((left + share_x * width) / spec.size, 1)
        row, in_y = divmod((top + share_y * height) / spec.size, 1)
        places.tiles.append(int(row) * columns + int(column))
        places.tokens.append(int(in_y * side) * side + int(in_x * side))
        places.overview_tokens.append(int(share_y * side) * side + int(share_x * side))
    return places


def _shares(attention: Tensor, places: _Places) -> dict[str, tuple[float, float]]:
    """Each share of one image, and its value by chance."""
    mean = attention.double().mean(0)  # (T, N, T), layers alike
    num_tiles, num_tokens = mean.shape[1:]
    from_token = mean.sum(-1)  # (T, N)
    read = mean.mean(0)  # (N, T)
    tiles = torch.tensor(sorted(set(places.tiles)))
    tokens = sorted(set(zip(places.tiles, places.tokens, strict=True)))
    right = [from_token[t, n].item() for t, n in zip(places.overview_tokens, places.tiles, strict=True)]
    by_tile = len(tiles) / num_tiles
    return {
        "right_tile": (sum(right) / len(right), 1 / num_tiles),
        "tiles": (read[tiles].sum().item(), by_tile),
        "tokens": (sum(read[n, t].item() for n, t in tokens), len(tokens) / (num_tiles * num_tokens)),
        "hits": (float(read.sum(-1).argmax().item() in tiles.tolist()), by_tile),
    }


def _partners(places: Sequence[_Places]) -> list[int | None]:
    """For each image the next one of the same canvas, in a circle; None if it is the only one."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index, place in enumerate(places):
        alike.setdefault(place.grid, []).append(index)
    following = {a: b for group in alike.values() if len(group) > 1 for a, b in zip(group, group[1:] + group[:1])}  # noqa: B905
    return [following.get(index) for index in range(len(places))]
