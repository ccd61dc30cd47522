#!/usr/bin/env python
"""How fast is the encoder on this CPU: of the matrix products' peak, and beside open_clip's and transformers' forward?

All three have the same weights, random ones of the published shape, and must give the same features. They run in turns,
the matrix product with them, so that whatever else the computer does falls on each alike. A share is a round's number
over another's of the same round; what is printed is the median over the rounds.

Example:
  python benchmarks/encode.py            # ViT-B/16 at 224: some minutes
  python benchmarks/encode.py --small    # a tiny model in seconds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
MIN_SHARE = 0.97
"""Minimum share of the faster of the other two."""
PUBLISHED = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
TINY = {**PUBLISHED, "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16}}
FULL, TOKENS = "pallava, whole tower", "pallava, tokens of layer -2"
OTHERS = ("open_clip", "transformers")


@dataclass(frozen=True)
class Candidate:
    """A way to encode.

    Attributes:
        name: Name in the table.
        forward: Function from pixels (N, 3, P, P) to features.
        layers: Number of layers that run.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    layers: int


def main() -> int:
    """Measure, print the table, and return 1 if ours is slower than `MIN_SHARE`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model; its numbers say nothing")
    parser.add_argument("--batch-size", type=int, default=9, help="tiles at once (default: %(default)s, one image's)")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    description = TINY if options.small else PUBLISHED
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        candidates = build(description, Path(folder))
        side = description["vision_cfg"]["image_size"]
        pixels = torch.randn(options.batch_size, 3, side, side)
        check(candidates, pixels)
        seconds = measure(candidates, pixels, 2 if options.small else options.rounds)
    share = report(candidates, seconds, description, options.batch_size)
    return 0 if options.small or share >= MIN_SHARE else 1


def build(description: dict[str, Any], folder: Path) -> list[Candidate]:
    """Make the three with the same random weights."""
    import json

    import open_clip
    from transformers import CLIPModel

    from pallava.model import load_plip
    from pallava.model.clip import convert_encoder
    from pallava.model.encoders import patch_tokens

    torch.manual_seed(0)
    (folder / "bench.json").write_text(json.dumps(description))
    open_clip.add_model_config(folder / "bench.json")
    clip = open_clip.create_model("bench").eval()
    torch.save(clip.state_dict(), folder / "bench.pt")
    convert_encoder(folder / "bench.pt", folder / "hf", "huggingface", str(folder / "bench.json"))
    theirs = CLIPModel.from_pretrained(folder / "hf").eval()
    encoder, depth = load_plip(folder / "hf"), description["vision_cfg"]["layers"]
    project = theirs.visual_projection
    return [
        Candidate(FULL, lambda pixels: project(encoder(pixels).pooler_output), depth),
        Candidate(TOKENS, lambda pixels: patch_tokens(encoder, pixels), depth - 1),
        Candidate("open_clip", clip.encode_image, depth),
        Candidate("transformers", lambda pixels: theirs.get_image_features(pixels), depth),
    ]


def check(candidates: list[Candidate], pixels: Tensor) -> None:
    """Refuse to compare different features."""
    expected = candidates[0].forward(pixels[:2])
    for candidate in candidates:
        if candidate.name != TOKENS:
            torch.testing.assert_close(candidate.forward(pixels[:2]), expected, atol=1e-4, rtol=1e-4)


def measure(candidates: list[Candidate], pixels: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return seconds of each forward and of the matrix product, one a round, in an order that rotates by one."""
    size = 1024
    left, right, out = (torch.randn(size, size) for _ in range(3))
    tasks: list[tuple[str, Callable[[], object]]] = [("peak", lambda: torch.mm(left, right, out=out))]
    tasks += [(c.name, lambda c=c: c.forward(pixels)) for c in candidates]  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name, _ in tasks}
    for number in range(-1, rounds):
        for name, task in tasks[number % len(tasks) :] + tasks[: number % len(tasks)]:
            # A product is short: the best of many is the peak.
            taken = min(_time(task) for _ in range(10 if name == "peak" else 1))
            if number >= 0:  # the round before warms up
                seconds[name].append(taken / (2 * size**3) if name == "peak" else taken)
    return seconds


def _time(task: Callable[[], object]) -> float:
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def count_flops(description: dict[str, Any], layers: int) -> float:
    """Return the floating point operations of one image's matrix products."""
    vision = description["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    tokens = (vision["image_size"] // patch) ** 2 + 1
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return 2 * (tokens - 1) * 3 * patch**2 * width + layers * layer


def report(candidates: list[Candidate], seconds: dict[str, list[float]], sizes: dict[str, Any], batch: int) -> float:
    """Print the table.

    Returns:
        Images per second of ours as a share of the faster of the others.
    """
    peak = statistics.median(1 / value for value in seconds["peak"])
    print(f"{torch.get_num_threads()} threads, batches of {batch}, matrix product {peak / 1e9:.1f} GFLOP/s\n")
    print(f"{'':<30}{'images/s':>10}{'of peak':>10}")
    for candidate in candidates:
        rate = batch / statistics.median(seconds[candidate.name])
        flops = count_flops(sizes, candidate.layers)
        shares = [
            batch * flops / taken * unit for taken, unit in zip(seconds[candidate.name], seconds["peak"], strict=True)
        ]
        print(f"{candidate.name:<30}{rate:>10.2f}{statistics.median(shares):>10.2f}")
    faster = min(OTHERS, key=lambda name: statistics.median(seconds[name]))
    shares = [other / own for own, other in zip(seconds[FULL], seconds[faster], strict=True)]
    share = statistics.median(shares)
    verdict = "kept" if share >= MIN_SHARE else "NOT kept"
    print(f"\n{FULL}: {share:.3f} of {faster}'s images per second (at least {MIN_SHARE}: {verdict})")
    return share


if __name__ == "__main__":
    sys.exit(main())
