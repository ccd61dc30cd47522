"""A hook that holds one process at one iteration, for a test that kills it there."""

import time
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook


class Pause(Hook):
    """Waits before an iteration (counted from 1) of one process, after it made the file `paused`; 0 never waits."""

    def __init__(self, iteration: int, rank: int) -> None:
        self.iteration, self.rank = iteration, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == self.iteration and get_rank() == self.rank:
            Path(runner.work_dir, "paused").touch()
            time.sleep(600)
