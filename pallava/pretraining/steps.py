"""How many steps a training will take, and whether every reader of its pairs finds a batch, told before it begins."""

import argparse
import math

from pallava.errors import PallavaError


def count_steps(num_pairs: int, parsed: argparse.Namespace, processes: int, shards: int) -> int:
    """Optimizer steps of the whole training, as the trainer will count them.

    Raises:
        PallavaError: There are fewer pairs than a batch, for any reader of shards too, or fewer shards than readers.
    """
    batch, readers = parsed.batch_size, max(1, parsed.workers)
    if shards:
        if not parsed.dataset_resampled:
            _check_readers(num_pairs, batch, readers * processes, shards)
        batches = math.ceil(math.ceil(num_pairs / (batch * processes)) / readers) * readers
    else:
        batches = math.ceil(num_pairs / processes) // batch
    if not batches // parsed.accum_freq:
        raise PallavaError(
            f"{num_pairs} pairs are fewer than a batch: {processes} processes take {batch} each, "
            f"{parsed.accum_freq} times a step; lower --batch-size"
        )
    return int(batches // parsed.accum_freq * parsed.epochs)


def _check_readers(num_pairs: int, batch: int, readers: int, shards: int) -> None:
    """A reader gives whole batches of its own shards alone, and would look for the first one for ever."""
    if shards < readers:
        raise PallavaError(
            f"{shards} shards are too few for {readers} readers, a process's own --workers or one: write at least "
            f"{readers} by --shards, or lower --workers"
        )
    size, num_larger = divmod(num_pairs, shards)
    fewest = shards // readers  # shards of a reader; in some epoch those that are smaller by one
    least = fewest * size + max(0, fewest - (shards - num_larger))
    if least < batch:
        raise PallavaError(
            f"{num_pairs} pairs in {shards} shards are too few for {readers} readers: a reader may find only {least} "
            f"pairs in its shards, fewer than a batch of {batch}; lower --workers or --batch-size, or write another "
            f"number of --shards, best a multiple of {readers}"
        )
