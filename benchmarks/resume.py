#!/usr/bin/env python
"""How long does a resumed run take to its first new step: xtuner's loop, which replays the data, beside ours?

Both get the same rows, whose pictures are opened, tiled and collated as in a training; the model does nothing. The two
run in turns, and must come to the same batch. Seconds are medians over the rounds, from building the loop to the step.
A replay reads every batch again, so it is measured at a few early iterations, a line through these is printed with its
largest error, and only the value of that line at the late iteration is extrapolated. Ours is measured there.

Example:
  python benchmarks/resume.py            # minutes
  python benchmarks/resume.py --small    # a few small pictures in seconds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
NUM_ROWS, BATCH_SIZE = 518_413, 6  # of the first stage
LATE = 40_000
EARLY = (100, 200, 400)
MIN_RATIO = 100
"""Minimum ratio at the late iteration."""
REPLAY, OURS = "xtuner, replay", "pallava"


class Rows(Dataset):
    """Many rows on a few pictures."""

    def __init__(self, paths: list[Path], size: int) -> None:
        from pallava.tiling import TileSpec

        self.paths, self.spec = paths, TileSpec(size, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        from pallava.images import open_image
        from pallava.tiling import cut_tiles

        tiles = cut_tiles(open_image(self.paths[index % len(self.paths)]), self.spec)
        texts = {"id": str(index), "input_ids": [1] * 400, "labels": [1] * 400, "replaced": []}
        pixels = {"pixel_values": tiles, "normalization": self.spec.normalization}
        return {**texts, **pixels, "tiles_per_image": [len(tiles)]}


def main() -> int:
    """Measure, print the table, and return 1 if the ratio is below `MIN_RATIO`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small pictures, few batches; its numbers say nothing")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    logging.disable(logging.WARNING)  # mmengine's, on each of the loops
    from pallava.io.processes import num_cores

    workers, early = num_cores(), tuple(number // 25 if options.small else number for number in EARLY)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(draw_pictures(Path(folder), small=options.small), 32 if options.small else 224)
        seconds = measure(rows, workers, early, 1 if options.small else options.rounds)
    print(f"batches of {BATCH_SIZE}, {workers} loading, load of the machine {os.getloadavg()[0]:.1f}\n")
    return 0 if report(seconds, early) >= MIN_RATIO or options.small else 1


def draw_pictures(folder: Path, *, small: bool) -> list[Path]:
    """Write synthetic micrographs as JPEG files of 512 x 384 pixels."""
    from PIL import Image

    from pallava.demo.micrographs import draw, random_facts

    rng, paths = np.random.default_rng(0), [folder / f"{number}.jpg" for number in range(4 if small else 48)]
    for path in paths:
        pixels = draw(random_facts(rng), rng).pixels
        Image.fromarray(pixels).resize((64, 48) if small else (512, 384)).save(path, quality=90)
    return paths


def measure(rows: Rows, workers: int, early: tuple[int, ...], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Return the seconds to the first step by loop and iteration, one a round."""
    tasks = [(name, number) for number in early for name in (REPLAY, OURS)] + [(OURS, LATE)]
    seconds: dict[tuple[str, int], list[float]] = {task: [] for task in tasks}
    first_step(rows, workers, OURS, 0)  # warms up
    for _ in range(rounds):
        batches: dict[int, list[str]] = {}
        for name, number in tasks:
            taken, ids = first_step(rows, workers, name, number)
            seconds[name, number].append(taken)
            assert batches.setdefault(number, ids) == ids, "the loops come to different batches"
    return seconds


def first_step(rows: Rows, workers: int, name: str, iteration: int) -> tuple[float, list[str]]:
    """Resume at an iteration; return the seconds to its step, and the ids of the step's rows."""
    from mmengine.dataset import DefaultSampler
    from xtuner.engine.runner import TrainLoop as ReplayingLoop

    from pallava.training.dataset import collate
    from pallava.training.loop import TrainLoop

    steps: list[tuple[float, list[str]]] = []

    def step(batch: dict[str, Any], **_: Any) -> None:
        steps.append((time.perf_counter() - begin, batch["data_samples"]["ids"]))

    model = SimpleNamespace(train=lambda: None, train_step=step)
    runner: Any = SimpleNamespace(model=model, optim_wrapper=SimpleNamespace(_accumulative_counts=1), seed=0)
    runner.message_hub = SimpleNamespace(runtime_info={}, update_info=lambda *_: None)
    runner.call_hook, runner.val_loop, runner._val_loop = lambda *_, **__: None, None, None
    runner.iter, runner.max_iters = iteration, iteration + 1
    order = DefaultSampler(rows, shuffle=True, seed=0)
    loader = DataLoader(rows, BATCH_SIZE, sampler=order, num_workers=workers, collate_fn=collate)
    begin = time.perf_counter()
    loop = (ReplayingLoop if name == REPLAY else TrainLoop)(runner, loader, max_iters=iteration + 1)
    loop._iter = iteration
    loop.run()
    return steps[0]


def report(seconds: dict[tuple[str, int], list[float]], early: tuple[int, ...]) -> float:
    """Print the table; return how many times as long a replay takes at the late iteration."""
    medians = {task: statistics.median(values) for task, values in seconds.items()}
    replayed = [medians[REPLAY, number] for number in early]
    slope, offset = np.polyfit(early, replayed, 1)
    error = max(abs(offset + slope * number - value) / value for number, value in zip(early, replayed, strict=True))
    print(f"{'iteration':>9}{REPLAY + ', s':>18}{OURS + ', s':>12}{'ratio':>10}")
    for number in early:
        replay, ours = medians[REPLAY, number], medians[OURS, number]
        print(f"{number:>9,}{replay:>18.2f}{ours:>12.2f}{replay / ours:>10.1f}")
    extrapolated, ours = offset + slope * LATE, medians[OURS, LATE]
    print(f"{LATE:>9,}{f'({extrapolated:.0f})':>18}{ours:>12.2f}{f'({extrapolated / ours:.0f})':>10}\n")
    print(
        f"(extrapolated): the line {offset:.2f} s + {1000 * slope:.1f} ms a batch, within {error:.1%} of the measured"
    )
    return extrapolated / ours


if __name__ == "__main__":
    sys.exit(main())
