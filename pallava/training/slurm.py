"""Work-arounds for mmengine's start of a group under Slurm; `compat` applies them."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.dist import utils as dist_utils

_FIRST_PORT, _NUM_PORTS = 10_000, 10_000  # below those that xtuner draws, and those that systems give to clients
_STEPS_OF_JOB = 61  # ports between two jobs of neighbouring numbers; has no factor in common with the number of ports


def start_apart_under_slurm() -> bool:
    """Give each job under Slurm a port of its own, and each process a card among those that it sees.

    mmengine takes port 29500 for every job on a node, and a process's number on its node for its card's. Where Slurm
    shows each process one card alone (``--gpus-per-task=1``), that one does not exist: ``invalid device ordinal``.
    """
    dist_utils._init_dist_slurm = _apart(dist_utils._init_dist_slurm)
    return True


def _apart(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def start_apart(backend: str, port: int | None = None, **kwargs: Any) -> None:
        if port is None and "MASTER_PORT" not in os.environ:
            port = port_of_step(os.environ)
        number, cards = os.environ.get("SLURM_LOCALID"), torch.cuda.device_count()
        if number is None or not cards:
            start(backend, port=port, **kwargs)
            return
        os.environ["SLURM_LOCALID"] = str(int(number) % cards)  # becomes LOCAL_RANK, the card in mmengine and DeepSpeed
        try:
            start(backend, port=port, **kwargs)
        finally:
            os.environ["SLURM_LOCALID"] = number

    return start_apart


def port_of_step(environment: Mapping[str, str]) -> int | None:
    """Return the port of a job's step, the same in all its processes; None outside of a job."""
    if not environment.get("SLURM_JOB_ID", "").isdecimal():
        return None
    step = environment.get("SLURM_STEP_ID", "")
    number = int(environment["SLURM_JOB_ID"]) * _STEPS_OF_JOB + (int(step) if step.isdecimal() else 0)
    return _FIRST_PORT + number % _NUM_PORTS
