#!/usr/bin/env python
"""Which tiles does the connector read: those with the drawn things, or any?

The pointing game on the demo's held-out synthetic micrographs, where the place of every figure is known. A share is of
the attention; `chance` is what an even spread gives, `elsewhere` the share with the attention paid to another picture.

Example:
  python benchmarks/pointing.py demo              # demo/model on the pictures of demo/data
  python benchmarks/pointing.py demo --model pa-llava --limit 50
"""
# Letters in shapes: K layers with cross-attention, T tokens of a tile, N tiles, I images.

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pallava.demo.material import Picture, read_pictures
from pallava.errors import PallavaError
from pallava.evaluation.statistics import Estimate, bootstrap
from pallava.model import PALLaVAProcessor
from pallava.model.attention import load_eyes, read_tiles
from pallava.tiling import TileSpec, choose_canvas, make_tiles, place_on_canvas

WORDS = {
    "right_tile": "overview token over it, on its tile",
    "tiles": "all overview tokens, on tiles with one",
    "tokens": "all overview tokens, on tokens with one",
    "hits": "the most-read tile has one",
}

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
            prefers some places whatever they show. NaN if no image has a partner.
    """

    share: Estimate
    chance: float
    elsewhere: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each kind of thing, mitotic figures first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of `pallava demo`")
    parser.add_argument("--model", type=Path, help="model folder (default: DEMO/model)")
    parser.add_argument("--limit", type=int, help="number of pictures (default: all)")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args(arguments)
    try:
        results = measure(options.demo / "data", options.model or options.demo / "model", options.limit)
    except (PallavaError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kind, (count, found) in results.items():
        print(f"\n{kind} ({count} pictures)\n  {'':<42}{'share  [95 %]':<23}chance  elsewhere")
        for name, value in found.items():
            share = value.share
            text = f"{share.value:.3f}  [{share.low:.3f}, {share.high:.3f}]"
            print(f"  {WORDS[name]:<42}{text:<23}{value.chance:.3f}   {value.elsewhere:.3f}")
    if options.json:
        numbers = {kind: {name: asdict(value) for name, value in found.items()} for kind, (_, found) in results.items()}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(data: Path, model: Path, limit: int | None) -> dict[str, tuple[int, dict[str, Pointing]]]:
    """Return the number of pictures and the results for each kind of thing that is drawn."""
    eyes, spec = load_eyes(model), PALLaVAProcessor.from_pretrained(model).tile_spec
    reads: dict[str, list[ReadImage]] = {}
    for picture in tqdm(read_pictures(data, "test")[:limit], desc="pictures", disable=None, file=sys.stderr):
        attention = read_tiles(eyes, make_tiles(picture.image, spec))
        for kind, spots in things_of(picture):
            reads.setdefault(kind, []).append(ReadImage(attention, picture.image.size, spots))
    first = "mitotic figure"
    kinds = sorted(reads, key=lambda kind: (kind != first, kind))
    return {kind: (len(reads[kind]), play(reads[kind], spec)) for kind in kinds}


def things_of(picture: Picture) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    """Kinds of things on a picture with their places; figures are mitotic or only smudges."""
    for kind in np.unique([region.kind for region in picture.regions]):
        spots = tuple((region.x, region.y) for region in picture.regions if region.kind == kind)
        if kind == "figure":
            kind = "mitotic figure" if picture.facts.mitosis else "smudge like one"
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
        found[name] = Pointing(share, chance, float(np.mean([s[name][0] for s in other])) if other else float("nan"))
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


if __name__ == "__main__":
    sys.exit(main())
