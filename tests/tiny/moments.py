"""A hook that makes a moment of a training last, for a test to send a signal into it."""

import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from tests.tiny.probe import unwrap

LONG_ANSWER = 20_000  # tokens, which take minutes


class Moment(Hook):
    """Writes the file `moment` into the work directory when a chat, or a save, of an iteration begins."""

    priority = "VERY_HIGH"

    def __init__(self, kind: str, iteration: int, seconds: float = 2.0) -> None:
        self.kind, self.iteration, self.seconds = kind, iteration, seconds

    def before_train(self, runner: Any) -> None:
        if not is_main_process():
            return
        owner, name = {"chat": (unwrap(runner.model).network, "generate"), "save": (runner, "save_checkpoint")}[
            self.kind
        ]
        method = getattr(owner, name)

        def last(*args: Any, **options: Any) -> Any:
            if runner.iter + 1 != self.iteration:
                return method(*args, **options)
            Path(runner.work_dir, "moment").touch()
            if self.kind == "chat":
                return method(*args, **{**options, "max_new_tokens": LONG_ANSWER, "min_new_tokens": LONG_ANSWER})
            time.sleep(self.seconds)
            return method(*args, **options)

        setattr(owner, name, last)
