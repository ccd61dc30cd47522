"""A hook that makes losses not finite."""

from mmengine.dist import get_rank
from mmengine.hooks import Hook


class Poison(Hook):
    """Puts NaN into the pictures of one process's batches, from one iteration on (counted from 1)."""

    def __init__(self, first: int, last: int, rank: int = 0) -> None:
        self.iterations, self.rank = range(first, last + 1), rank

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 in self.iterations and get_rank() == self.rank:
            data = data_batch["data"]
            data["pixel_values"] = data["pixel_values"].float().fill_(float("nan"))
