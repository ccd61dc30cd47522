"""Checkpoints that are whole or absent, written where an optimizer step ends."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper

from pallava.errors import PallavaError
from pallava.io.files import synchronize
from pallava.io.processes import hold_lock
from pallava.training.checkpoints import (
    checkpoint_bytes,
    finish,
    newest_whole,
    remove,
    remove_unfinished,
    unfinished_name,
)
from pallava.training.hooks.random_state import store_random_states
from pallava.training.steps import accumulative_counts, ends_step, is_due

LOCK = ".training.lock"
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container")  # in what torch raises where a file cannot be written


class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook, but no checkpoint is ever half there, and a resumed run repeats every bit.

    A checkpoint is due at the end of the optimizer step that a multiple of `interval` falls into: gradients of a
    started accumulation are not part of it. It has the random states of all processes and the facts that a resumed run
    must share (`launch` in its meta). It is written under another name, synchronized and renamed; then the oldest one
    goes. Only `by_epoch=False` is supported.

    Raises:
        PallavaError: The disk has no room for a checkpoint, or gets full, or another training writes to the folder.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = ExitStack()

    def before_train(self, runner: Any) -> None:
        """Check the room on the disk, and say where checkpoints will be written."""
        if self.by_epoch or self.interval < 1:
            raise PallavaError("the checkpoint hook must have by_epoch=False and an interval of at least 1 iteration")
        kept = runner.message_hub.runtime_info.pop("keep_ckpt_ids", [])
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self._keep(runner, kept)  # a kill may have come before the oldest one was removed
        counts = accumulative_counts(runner)
        if self.interval % counts:
            runner.logger.info(
                f"checkpoints follow every {self.interval} iterations, at the end of an optimizer step "
                f"({counts} iterations)"
            )
        if is_main_process():
            _check_room(runner, Path(self.out_dir), self.max_keep_ckpts)
            refusal = f"another training writes to '{self.out_dir}'; end it, or give another --work-dir"
            self._lock.enter_context(hold_lock(Path(self.out_dir, LOCK), refusal))
            remove_unfinished(Path(self.out_dir))

    def after_train(self, runner: Any) -> None:
        """Let others have the folder."""
        super().after_train(runner)
        self._lock.close()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write a checkpoint where one is due, and after the last iteration."""
        if is_due(runner, self.interval) or (self.save_last and runner.iter + 1 == runner.max_iters):
            self.save(runner)

    def save(self, runner: Any) -> Path:
        """Write a checkpoint of the current iteration, on all processes, unless it is written already."""
        assert ends_step(runner)
        step = runner.iter + 1
        path = Path(self.out_dir, self.filename_tmpl.format(step))
        if self.last_ckpt != str(path):
            runner.logger.info(f"Saving checkpoint at {step} iterations")
            store_random_states(runner)
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": step})
        return path

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        folder, name = Path(self.out_dir), self.filename_tmpl.format(step)
        if self.max_keep_ckpts > 0:  # with those that go now: the run remembers them until they are gone
            kept = [number for number in self.keep_ckpt_ids if number != step] + [step]
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        runner.message_hub.update_info("last_ckpt", str(folder / name))
        with _full_disk_reported(folder, name):
            runner.save_checkpoint(
                self.out_dir,
                unfinished_name(name),
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta={**meta, "launch": describe_launch(runner)},
                by_epoch=False,
                backend_args=self.backend_args,
            )
            if (folder / unfinished_name(name)).exists():
                synchronize(folder / unfinished_name(name))  # by each process: it may be the only one that can
            barrier()
            if is_main_process():
                finish(folder, name, Path(runner.work_dir))
        self.last_ckpt = str(folder / name)
        if self.max_keep_ckpts > 0:
            self._keep(runner, kept)
        barrier()

    def _keep(self, runner: Any, iterations: list[int]) -> None:
        """Keep the newest of these checkpoints, and remove the others."""
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(iterations)  # a deque: it keeps as many as it may
        runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        if is_main_process():
            for old in iterations[: -self.max_keep_ckpts]:
                remove(Path(self.out_dir, self.filename_tmpl.format(old)))


def describe_launch(runner: Any) -> dict[str, int]:
    """Return what a resumed run must share with the one that wrote a checkpoint, for the same batches in each step."""
    batch_size = runner.train_dataloader.batch_size or 0  # 0: a batch sampler of the user's decides
    counts = accumulative_counts(runner)
    return {"processes": get_world_size(), "batch_size": batch_size, "accumulative_counts": counts}


def _check_room(runner: Any, folder: Path, most: int) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    has_deepspeed = not hasattr(runner.optim_wrapper, "_accumulative_counts")
    number = sum(parameter.numel() for parameter in trained)
    one = checkpoint_bytes(number, trained[0].dtype, has_deepspeed=has_deepspeed)
    free = shutil.disk_usage(folder).free
    if free < one:
        raise PallavaError(
            f"'{folder}' must have room for a checkpoint of {one / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; make "
            "room, or give another --work-dir"
        )
    if most > 0 and free < one * (most + 1):
        runner.logger.warning(
            f"'{folder}' has {free / 1e9:.1f} GB free, but {most} checkpoints and a new one take "
            f"{one * (most + 1) / 1e9:.1f} GB"
        )


@contextmanager
def _full_disk_reported(folder: Path, name: str) -> Iterator[None]:
    """Turn what torch or the system raise when a checkpoint cannot be written into a sentence, and free its part."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(words in str(error) for words in _TORCH_WRITES):
            raise
        remove(folder / unfinished_name(name))
        # torch's own words are positions in the file.
        reason = getattr(error, "strerror", None) or "a file ends early, as on a full disk or at a quota"
        good = f"'{last.name}' is the last good one; " if (last := newest_whole(folder)) else ""
        raise PallavaError(
            f"checkpoint '{folder / name}' cannot be written: {reason}; {good}make room and add --resume auto"
        ) from None
