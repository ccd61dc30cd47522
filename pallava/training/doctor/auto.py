"""Activation checkpointing that fits the card: one way for a training that starts and for `pallava doctor`."""

import os
from dataclasses import replace
from typing import Any

import psutil
import torch
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.logging import print_log

from pallava.training import preflight
from pallava.training.doctor.case import Case, DoctorSettings
from pallava.training.doctor.memory import Memory, plain_memory, read_zero_settings, zero_memory
from pallava.training.doctor.step import count_activations
from pallava.training.hooks.random_state import get_random_state, set_random_state
from pallava.training.recompute import TRIED, Choice, count_positions

SHARE = 0.9  # of a card that the estimate may take: the allocator's gaps and the largest kernels are not in it


def plan_step(case: Case, runner: str, choice: Choice, batch: str = "longest_batch") -> Memory:
    """Return the memory of a card under a runner ("plain", "ZeRO-1" or "ZeRO-2") and a choice of recomputation.

    The batch is named as in `Case`.
    """
    key = f"activations {choice} {batch}"
    if key not in case.opened:
        case.opened[key] = count_activations(case.outline(choice), getattr(case, batch))
    launch = (case.parameters, case.dtype, case.settings.num_processes)
    step: dict[str, Any] = {"activation_checkpointing": choice, "activations": case.opened[key]}
    if runner == "plain":
        return plain_memory(*launch, **step)
    settings, accumulation = read_zero_settings(case.deepspeed, int(runner[-1]))
    return zero_memory(*launch, settings, accumulation, **step)


def choose(case: Case) -> Memory:
    """Return the plan of the config's own runner with the least recomputation that fits: what "auto" takes."""
    for choice in TRIED:
        found = plan_step(case, case.runner_name, choice)
        if case.fits(found, SHARE):
            break
    return found


def most_positions(case: Case) -> int:
    """Return how many positions a batch may have, as `count_positions` counts them, to fit without recomputation.

    Memory grows with them in a line, which two batches show: that of the longest rows, and one half as long.
    """
    tokens = case.model.network.config.num_visual_tokens
    batches = ("half_batch", "longest_batch")
    low, high = (count_positions(getattr(case, batch)["data"], tokens) for batch in batches)
    least, most = (case.need(plan_step(case, case.runner_name, "none", batch)) for batch in batches)
    if high <= low or most <= least:
        return 0
    return max(0, int(low + (SHARE * case.room - least) * (high - low) / (most - least)))


def describe_choice(choice: Choice, above: int) -> str:
    """Return what "auto" takes, in batches of more than so many positions."""
    where = f" in batches of more than {above:,} positions" if above else ""
    return f"auto takes {choice!r}{where}"


def settle(runner: Any, dataloader: Any) -> None:
    """Replace the "auto" of a training by what fits, at its start: only then are model, data and device all known.

    The main process counts a step of the longest rows on the meta device, which takes seconds, and all do the same.
    Where that cannot be counted, for example because a part is opened by a function of the user's, "all" stays.
    """
    model = getattr(runner.model, "module", runner.model)
    if getattr(model, "activation_checkpointing", None) != "auto":
        return
    found = [_decide(runner, dataloader) if is_main_process() else None]
    broadcast_object_list(found)
    choice, above, reason = found[0]  # type: ignore[misc]
    model.recompute(choice, above)
    print_log(f"activation_checkpointing: {describe_choice(choice, above)} ({reason})", "current")


def _decide(runner: Any, dataloader: Any) -> tuple[Choice, int, str]:
    random_state = get_random_state()  # parts that are built draw weights
    try:
        case = _RunningCase(runner, dataloader)
        found = choose(case)
        choice = found.activation_checkpointing
        above = 0 if choice == "none" else most_positions(case)
        found = found if torch.cuda.is_available() else replace(found, cuda=0)
        return choice, above, f"{found.describe()} of {case.describe_room()} in the longest batch"
    except Exception as error:  # a config may name anything; without an estimate the training still runs
        return "all", 0, f"no estimate: {' '.join(str(error).split())[:150]}"
    finally:
        set_random_state(random_state)


class _RunningCase(Case):
    """A training on this machine, whose data set is open and whose processes are known."""

    def __init__(self, runner: Any, dataloader: Any) -> None:
        self.settings = DoctorSettings(str(runner.cfg.filename), num_processes=get_world_size())
        self.config = runner.cfg
        self._values = runner.cfg.to_dict()
        has_deepspeed = preflight.has_deepspeed(self._values)
        settings = preflight.deepspeed_settings(self._values) if has_deepspeed else None
        self.opened: dict[str, Any] = {"deepspeed": settings, "loader": dataloader}

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, preflight.trained_precision(self._values))

    @property
    def first_batch(self) -> Any:
        """Return a batch of the first rows, without the workers of the loader."""
        dataset, size = self.loader.dataset, self.get("train_dataloader.batch_size", 1)
        return self.loader.collate_fn([dataset[index] for index in range(min(size, len(dataset)))])

    @property
    def room(self) -> float:
        return super().room if torch.cuda.is_available() else _free_memory()

    def need(self, plan: Memory) -> int:
        """Return the bytes of a plan; without a card, of what is not there yet: all but the weights."""
        return super().need(plan) if torch.cuda.is_available() else plan.total - plan.weights - plan.cuda

    def describe_room(self) -> str:
        """Return the memory that must hold it."""
        if torch.cuda.is_available():
            return f"a card of {self.room / 1e9:.3g} GB"
        return f"{self.room / 1e9:.3g} GB that are free for a process"


def _free_memory() -> float:
    """Return the share of the free memory of this machine that a process may take, in bytes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size()))
    return psutil.virtual_memory().available / processes
