"""Random numbers of a resumed run: those that the interrupted one would have drawn."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log

_KEY = "random_states"


def store_random_states(runner: Any) -> None:
    """Put the random states of all processes into the message hub, for a checkpoint that is about to be written."""
    runner.message_hub.update_info(_KEY, all_gather_object(get_random_state()))


class RandomStateHook(Hook):
    """Restores every process's random state on resume.

    Neither mmengine nor DeepSpeed does: with LoRA's dropout the losses after a resume would differ. The states travel
    in the message hub, which both save. `after_load_checkpoint` is never called under DeepSpeed, so they are restored
    before the first step.
    """

    priority = "LOW"  # before CheckpointHook (VERY_LOW)

    def __init__(self) -> None:
        self._is_restored = False

    def before_train(self, runner: Any) -> None:
        """Keep the loader's own draws, one an epoch, out of the state that is stored."""
        loader = runner.train_dataloader
        if loader.generator is None:
            loader.generator = torch.Generator()
            loader.generator.manual_seed(runner.seed)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Restore the state of a resumed run, once, after the loader skipped what was seen."""
        states = None if self._is_restored else runner.message_hub.runtime_info.get(_KEY)
        self._is_restored = True
        if states and get_rank() < len(states):
            set_random_state(states[get_rank()])
        elif states:
            print_log("resumed with more processes than before; the new ones draw new random numbers", "current")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Store the states where mmengine's own hook, of an older config, is about to write a checkpoint."""
        if any(_saves_now(hook, self, runner) for hook in runner.hooks if type(hook) is CheckpointHook):
            store_random_states(runner)


def get_random_state() -> dict[str, Any]:
    """Return this process's state of torch, Python and numpy, in tensors and plain numbers (safe to load)."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `get_random_state` returned; a CUDA state is left out without CUDA."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _saves_now(checkpoint: CheckpointHook, hook: Hook, runner: Any) -> bool:
    """Whether the checkpoint hook, which comes right after, will write one for this iteration."""
    is_due = hook.every_n_train_iters(runner, checkpoint.interval, checkpoint.save_begin)
    return hook.is_last_train_iter(runner) or (is_due and not checkpoint.by_epoch)
