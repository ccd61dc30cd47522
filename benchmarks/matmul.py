#!/usr/bin/env python
"""How much faster does oneDNN multiply matrices of float32 on this CPU than torch's MKL?

The shapes are those of a training at the sizes of training.py, and of one token's answer; forward, then the gradients
of the input and of the weights. Both take turns, and a ratio is the median over the rounds. Results must be equal, but
for rounding, which is checked first. Where `pallava.matmul` leaves this CPU to MKL, it says so: oneDNN is measured all
the same.

Example:
  python benchmarks/matmul.py          # half a minute on two cores
  python benchmarks/matmul.py --small  # few rounds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES = {  # rows, inner width and columns
    "encoder, attention": (2955, 768, 768),
    "encoder, feed-forward": (2955, 768, 3072),
    "language model, attention": (632, 576, 576),
    "language model, feed-forward": (632, 576, 1536),
    "LoRA": (632, 576, 128),
    "vocabulary, 32 answers": (32, 576, 49152),
    "vocabulary, one answer": (1, 576, 49152),
}
LIBRARIES = ("MKL", "oneDNN")


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few rounds; their numbers say nothing")
    rounds = 2 if parser.parse_args().small else 20
    from pallava import matmul

    if not matmul.use_onednn():
        print("pallava leaves this CPU to MKL")
        matmul.replace_kernels()
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, GFLOP/s\n")
    print(f"{'':<30}{'':<20}{'MKL':>8}{'oneDNN':>8}{'ratio':>8}")
    for name, (rows, inner, columns) in SHAPES.items():
        tokens, weight, gradient = (torch.randn(size) for size in ((rows, inner), (columns, inner), (rows, columns)))
        products = {"forward": (tokens, weight.t()), "input's gradient": (gradient, weight)}
        products |= {"weights' gradient": (gradient.t(), tokens)} if rows > 1 else {}
        for kind, pair in products.items():
            seconds = measure(*pair, rounds)
            ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
            work = 2e-9 * rows * inner * columns
            speeds = "".join(f"{work / statistics.median(each):>8.0f}" for each in seconds.values())
            print(f"{name:<30}{kind:<20}{speeds}{ratio:>8.2f}")
    return 0


def measure(left: Tensor, right: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a product by each library, one a round."""
    results, seconds = {}, {name: [] for name in LIBRARIES}
    for _ in range(rounds):
        for name in LIBRARIES:
            with torch.backends.mkldnn.flags(enabled=name == "oneDNN"):
                begin = time.perf_counter()
                results[name] = torch.mm(left, right)
                seconds[name].append(time.perf_counter() - begin)
    torch.testing.assert_close(*results.values(), rtol=1e-3, atol=1e-3)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
