"""xtuner and mmengine on a machine without a GPU, or with one without bf16 of its own."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True)
class DeviceWithoutBf16:
    """What xtuner asks of a device, answered for one without bf16 of its own.

    A CPU could compute in it, but xtuner would hand float32 inputs to bf16 weights.

    Attributes:
        has_fp16: Whether to train in fp16.
    """

    has_fp16: bool

    def is_available(self) -> bool:
        """Return whether to train in fp16, which is how xtuner reads the answer."""
        return self.has_fp16

    def is_bf16_supported(self) -> bool:
        """Return whether to train in bf16."""
        return False


def describe_cpu_to_xtuner() -> bool:
    """Answer xtuner's `torch.cpu.is_bf16_supported`, which does not exist, for the precision of `--deepspeed`."""
    if torch.cuda.is_available():
        return False
    from xtuner.tools import utils
    from xtuner.utils.device import get_device_name

    if get_device_name() != "cpu" or hasattr(torch.cpu, "is_bf16_supported"):
        return False
    utils.get_torch_device = functools.partial(DeviceWithoutBf16, has_fp16=False)
    return True


def describe_old_gpu_to_xtuner() -> bool:
    """Answer no to xtuner's question for bf16 where torch only emulates it; `--deepspeed` would train in that."""
    cuda = torch.cuda
    if not cuda.is_available() or not cuda.is_bf16_supported() or cuda.is_bf16_supported(including_emulation=False):
        return False
    from xtuner.tools import utils

    utils.get_torch_device = functools.partial(DeviceWithoutBf16, has_fp16=True)
    return True


def distribute_on_cpu() -> bool:
    """Start groups on gloo without `torch.cuda.set_device`, which mmengine calls under every launcher."""
    if torch.cuda.is_available():
        return False
    from mmengine.dist import utils

    for name in ("_init_dist_pytorch", "_init_dist_slurm", "_init_dist_mpi"):
        setattr(utils, name, _without_cuda(getattr(utils, name)))
    return True


def _without_cuda(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def start_on_cpu(backend: str, **kwargs: Any) -> None:
        with mock.patch.object(torch.cuda, "set_device"):
            start("gloo" if backend == "nccl" else backend, **kwargs)

    return start_on_cpu


def wrap_on_cpu() -> bool:
    """Keep GPU numbers from `MMDistributedDataParallel`, which torch refuses for a model on a CPU."""
    if torch.cuda.is_available():
        return False
    from mmengine.model import MMDistributedDataParallel

    construct = MMDistributedDataParallel.__init__

    @functools.wraps(construct)
    def construct_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **{**kwargs, "device_ids": None})

    MMDistributedDataParallel.__init__ = construct_on_cpu
    return True
