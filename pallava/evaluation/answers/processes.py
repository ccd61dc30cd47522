"""Several processes that share one piece of work, as torchrun starts them; or one, without any of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_PATIENCE = timedelta(days=7)  # the first process to be done waits for the last one


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Attributes:
        rank: Number of this one.
        count: How many there are, on all nodes.
        local_rank: Number of this one on its node.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """Meets the others, if torchrun has started several."""
        if not is_launched(environment):
            return cls()
        rank, count, local = (int(environment.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(rank, count, local)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in each of them; nobody goes on before everybody is here."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Ends what `join` began."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in environment and "WORLD_SIZE" in environment
