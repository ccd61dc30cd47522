#!/usr/bin/env python
"""Which tiles does the connector read: those with the drawn things, or any?

The pointing game on the demo's held-out synthetic micrographs, where the place of every figure is known. A share is of
the attention; `chance` is what an even spread gives, `elsewhere` the share with the attention paid to another picture.

Example:
  python benchmarks/pointing.py demo              # demo/model on the pictures of demo/data
  python benchmarks/pointing.py demo --model pa-llava --limit 50
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WORDS = {
    "right_tile": "overview token over it, on its tile",
    "tiles": "all overview tokens, on tiles with one",
    "tokens": "all overview tokens, on tokens with one",
    "hits": "the most-read tile has one",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each kind of thing, mitotic figures first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of `pallava demo`")
    parser.add_argument("--model", type=Path, help="model folder (default: DEMO/model)")
    parser.add_argument("--limit", type=int, help="number of pictures (default: all)")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args(arguments)
    from pallava.errors import PallavaError

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


def measure(data: Path, model: Path, limit: int | None) -> dict[str, tuple[int, Any]]:
    """Return the number of pictures and the results for each kind of thing that is drawn."""
    from pallava.demo.material import read_pictures
    from pallava.evaluation.encoders.pointing import ReadImage, play
    from pallava.model import PALLaVAProcessor
    from pallava.model.attention import load_eyes, read_tiles
    from pallava.tiling import make_tiles

    eyes, spec = load_eyes(model), PALLaVAProcessor.from_pretrained(model).tile_spec
    reads: dict[str, list[ReadImage]] = {}
    for picture in tqdm(read_pictures(data, "test")[:limit], desc="pictures", disable=None, file=sys.stderr):
        attention = read_tiles(eyes, make_tiles(picture.image, spec))
        for kind, spots in things_of(picture):
            reads.setdefault(kind, []).append(ReadImage(attention, picture.image.size, spots))
    first = "mitotic figure"
    kinds = sorted(reads, key=lambda kind: (kind != first, kind))
    return {kind: (len(reads[kind]), play(reads[kind], spec)) for kind in kinds}


def things_of(picture: Any) -> Iterator[tuple[str, tuple[tuple[float, float], ...]]]:
    """Kinds of things on a picture with their places; figures are mitotic or only smudges."""
    for kind in np.unique([region.kind for region in picture.regions]):
        spots = tuple((region.x, region.y) for region in picture.regions if region.kind == kind)
        if kind == "figure":
            kind = "mitotic figure" if picture.facts.mitosis else "smudge like one"
        yield str(kind), spots


if __name__ == "__main__":
    sys.exit(main())
