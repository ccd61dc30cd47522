"""xtuner and mmengine on a machine without a GPU, or with one without bf16 of its own."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


def _describe_to_xtuner(*, has_fp16: bool) -> None:
    """Answer what xtuner asks of a device: `is_available` decides on fp16, and bf16 is out.

    A CPU could compute in bf16, but xtuner would hand float32 inputs to bf16 weights.
    """
    from xtuner.tools import utils

    answers = SimpleNamespace(is_available=lambda: has_fp16, is_bf16_supported=lambda: False)
    utils.get_torch_device = lambda: answers


def describe_cpu_to_xtuner() -> bool:
    """Answer xtuner's `torch.cpu.is_bf16_supported`, which does not exist, for the precision of `--deepspeed`."""
    if torch.cuda.is_available():
        return False
    from xtuner.utils.device import get_device_name

    if get_device_name() != "cpu" or hasattr(torch.cpu, "is_bf16_supported"):
        return False
    _describe_to_xtuner(has_fp16=False)
    return True


def describe_old_gpu_to_xtuner() -> bool:
    """Answer no to xtuner's question for bf16 where torch only emulates it; `--deepspeed` would train in that."""
    cuda = torch.cuda
    if not cuda.is_available() or not cuda.is_bf16_supported() or cuda.is_bf16_supported(including_emulation=False):
        return False
    _describe_to_xtuner(has_fp16=True)
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
