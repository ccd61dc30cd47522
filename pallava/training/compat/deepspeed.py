"""DeepSpeed with a single process and no MPI, on a CPU without a compiler, and with the gradients of an all-gather."""

import functools
import importlib
import os
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version

_GATHERS_WITHOUT_GRADIENTS = Version("0.19.0")


def start_alone_without_mpi() -> bool:
    """Name a single process as its own group, for which `--deepspeed` without a launcher would need mpi4py."""
    from mmengine._strategy import DeepSpeedStrategy

    wrap_model = DeepSpeedStrategy._wrap_model

    @functools.wraps(wrap_model)
    def wrap_model_alone(self: Any, model: torch.nn.Module) -> Any:
        # By now every launcher has started its group. Earlier, these variables would be taken for a launcher's.
        if not torch.distributed.is_initialized():
            name_single_process()
        return wrap_model(self, model)

    DeepSpeedStrategy._wrap_model = wrap_model_alone
    return True


def name_single_process() -> None:
    """Set what DeepSpeed needs to start a group of one, unless a launcher named the process already."""
    launched = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    mpi_processes = max(int(os.environ.get(name, 1)) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    if launched or mpi_processes > 1:
        return
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # any free port: nobody else joins


def gather_without_gradients() -> bool:
    """Make ZeRO's step gather parameters without gradients, with which gloo refuses it before DeepSpeed 0.19.

    `Output 0 of Split is a view and is being modified inplace`. Only the backend of a CPU gathers in this way.
    """
    if torch.cuda.is_available() or Version(version("deepspeed")) >= _GATHERS_WITHOUT_GRADIENTS:
        return False
    from deepspeed.runtime.zero import stage_1_and_2

    stage_1_and_2.all_gather_dp_groups = torch.no_grad()(stage_1_and_2.all_gather_dp_groups)
    return True


def gather_without_compiling() -> bool:
    """Keep DeepSpeed from compiling an all-reduce on a CPU that only its inference uses; it may have no compiler."""
    if torch.cuda.is_available():
        return False
    backend = importlib.import_module("deepspeed.comm.torch")  # `from deepspeed.comm import torch` gives torch itself
    if not hasattr(backend, "build_shm_op"):
        return False
    backend.build_shm_op = lambda: None  # type: ignore[attr-defined]
    return True
