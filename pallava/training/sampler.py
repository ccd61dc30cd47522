"""The order of a training's rows: random, but rows that are computed together have like lengths."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from numpy.typing import NDArray
from torch.utils.data import Sampler

MEGA_BATCH = 100
"""About how many micro-steps are sorted together: more waste less, fewer vary more which rows meet in a batch."""


@DATA_SAMPLERS.register_module()
class LengthSampler(Sampler[int]):
    """Yield the rows of this process such that all processes compute batches of like length at a time.

    Each epoch draws mega-batches of random rows, sorts each by length, those with and without image apart, and cuts it
    into micro-steps, which are a batch for each process. Micro-steps come in random order, and so do the processes in
    each, so that over an accumulated step none has more work than others. The micro-step of the longest row comes
    first, where a lack of memory shows at once; the last one is of random rows, and may be smaller. The order depends
    on the seed and the epoch alone.

    Args:
        dataset: Data whose `modality_length` has the length of each row, negative without image.
        batch_size: Rows of a batch of one process, as the loader cuts them.
        seed: Seed of the order, the same on all processes (default: drawn).
    """

    def __init__(self, dataset: Any, batch_size: int, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.batch_size, self.epoch = batch_size, 0
        self.seed = sync_random_seed() if seed is None else seed
        self._lengths = np.asarray(dataset.modality_length)

    def __len__(self) -> int:
        """Return the number of rows of each process; some rows come twice where they do not divide evenly."""
        return -(-len(self._lengths) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of this process's rows in this epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = np.resize(rng.permutation(len(self._lengths)), len(self) * self.world_size)
        size = self.batch_size * self.world_size
        num_steps = len(rows) // size
        mega_batches = np.arange(len(rows)) // size * max(2, round(num_steps / MEGA_BATCH)) // max(1, num_steps)
        rows = rows[np.lexsort((-self._lengths[rows], mega_batches))]  # without image from the shortest to the longest
        steps, rest = self._deal(rows[: num_steps * size], rng), rows[num_steps * size :]
        return iter([*steps[:, self.rank].ravel().tolist(), *rest[self.rank :: self.world_size].tolist()])

    def _deal(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return sorted rows as micro-steps (S, processes, batch) in random order, that of the longest row first."""
        steps = rng.permutation(rows.reshape(-1, self.world_size, self.batch_size))
        steps = np.take_along_axis(steps, rng.random(steps.shape[:2]).argsort(1)[..., None], axis=1)
        if len(steps):
            longest = np.abs(self._lengths[steps]).max(axis=(1, 2)).argmax()
            steps[[0, longest]] = steps[[longest, 0]]
        return steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
