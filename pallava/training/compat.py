"""Every work-around for the libraries below us, each with its reason, its guard and a test that says when to drop it.

`apply` runs when `pallava.training` is imported, which our configs do while they are parsed: before xtuner reads a
checkpoint's seed, chooses the precision of DeepSpeed, or starts the processes' group. A work-around returns whether it
was needed. It imports xtuner itself, not this module: peft, below xtuner, must not meet a broken bitsandbytes.
"""

import argparse
import functools
import importlib
import os
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import ConfigDict
from mmengine.dist import utils as dist_utils
from mmengine.logging import HistoryBuffer
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import checkpoint
from packaging.version import Version

from pallava.io.launch import interface_to
from pallava.matmul import use_onednn
from pallava.model.versions import block_broken_bitsandbytes
from pallava.model.weights import unreadable
from pallava.training.slurm import start_apart_under_slurm
from pallava.training.zero import accumulate_in_float32, name_settings

AUTO = "auto"  # of --resume: the newest whole checkpoint of the work directory
_HISTORY_METHODS = ("min", "max", "mean", "current")


@functools.cache
def apply() -> tuple[str, ...]:
    """Apply the work-arounds that this machine and these versions need, once, and return their names."""
    workarounds = _EVERYWHERE if torch.cuda.is_available() else (*_EVERYWHERE, *_WITHOUT_GPU)
    return tuple(workaround.__name__ for workaround in workarounds if workaround())


def _describe_to_xtuner(*, has_fp16: bool) -> None:
    """Answer what xtuner asks of a device: `is_available` decides on fp16, and bf16 is out.

    A CPU could compute in bf16, but xtuner would hand float32 inputs to bf16 weights.
    """
    from xtuner.tools import utils

    answers = types.SimpleNamespace(is_available=lambda: has_fp16, is_bf16_supported=lambda: False)
    utils.get_torch_device = lambda: answers


def describe_cpu_to_xtuner() -> bool:
    """Answer xtuner's `torch.cpu.is_bf16_supported`, which does not exist, for the precision of `--deepspeed`."""
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
    for name in ("_init_dist_pytorch", "_init_dist_slurm", "_init_dist_mpi"):
        setattr(dist_utils, name, _without_cuda(getattr(dist_utils, name)))
    return True


def _without_cuda(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def start_on_cpu(backend: str, **kwargs: Any) -> None:
        # By itself gloo takes the address that the host's name has, which often is one that no other node reaches.
        first = os.environ.get("MASTER_ADDR")
        if first and "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_to(first)):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        with mock.patch.object(torch.cuda, "set_device"):
            start("gloo" if backend == "nccl" else backend, **kwargs)

    return start_on_cpu


def wrap_on_cpu() -> bool:
    """Keep GPU numbers from `MMDistributedDataParallel`, which torch refuses for a model on a CPU."""
    construct = MMDistributedDataParallel.__init__

    @functools.wraps(construct)
    def construct_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **{**kwargs, "device_ids": None})

    MMDistributedDataParallel.__init__ = construct_on_cpu
    return True


def start_alone_without_mpi() -> bool:
    """Name a single process as its own group, for which `--deepspeed` without a launcher would need mpi4py."""
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
    if Version(version("deepspeed")) >= Version("0.19.0"):
        return False
    from deepspeed.runtime.zero import stage_1_and_2

    stage_1_and_2.all_gather_dp_groups = torch.no_grad()(stage_1_and_2.all_gather_dp_groups)
    return True


def gather_without_compiling() -> bool:
    """Keep DeepSpeed from compiling an all-reduce on a CPU that only its inference uses; it may have no compiler."""
    backend = importlib.import_module("deepspeed.comm.torch")  # `from deepspeed.comm import torch` gives torch itself
    if not hasattr(backend, "build_shm_op"):
        return False
    backend.build_shm_op = lambda: None  # type: ignore[attr-defined]
    return True


def load_checkpoint(file: Any, map_location: Any = None, *, mmap: bool = False) -> Any:
    """Load with `weights_only=True`, but admit, for this call alone, what mmengine and DeepSpeed write.

    With `mmap`, weights stay in the file until they are used.

    Raises:
        PallavaError: The file is cut, empty or something else.
    """
    try:
        with torch.serialization.safe_globals(_admitted()):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        if getattr(error, "filename", None):  # the system's, not the file's
            raise
        raise unreadable(file, error) from None


class _TorchLoadingSafely(types.ModuleType):
    """Stands for `torch` in a module of another library; only its `load` differs."""

    @staticmethod
    def load(file: Any, map_location: Any = None, **_: Any) -> Any:
        return load_checkpoint(file, map_location)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def load_checkpoints_safely() -> bool:
    """Make mmengine load its own checkpoints from torch 2.6 on, and xtuner's converter execute nothing in a file.

    mmengine (`--resume` of a file) and xtuner (the seed of a resumed run) use torch's default, which refuses their logs
    (`Unsupported global: mmengine.logging.history_buffer.HistoryBuffer`). xtuner's `guess_load_checkpoint` and its
    reader of DeepSpeed folders (`xtuner convert`) turn safety off. Scripts import these functions by name before we
    can replace them; what they see as `torch` can be replaced. DeepSpeed, too, executes what is in a file, and does not
    name a damaged one.
    """
    from deepspeed.runtime.checkpoint_engine import torch_checkpoint_engine
    from xtuner.model import utils as model_utils
    from xtuner.tools import utils as tool_utils
    from xtuner.utils import zero_to_any_dtype

    for module in (checkpoint, tool_utils, model_utils, zero_to_any_dtype, torch_checkpoint_engine):
        module.torch = _TorchLoadingSafely("torch")
    return True


def accept_resume_auto() -> bool:
    """Let xtuner's trainer pass ``--resume auto``, of which it would read the seed as of a file.

    `failures.resume_newest` replaces it, and the seed, once the work directory is known; the seed of a training that
    begins is the one of the command line. The trainer, which is the main module, has imported the function by name.
    """
    from xtuner.tools import utils as tool_utils

    read_seed, trainer = tool_utils.get_seed_from_checkpoint, sys.modules["__main__"]

    def get_seed_from_checkpoint(pth_model: str) -> int | None:
        return _seed_of_command() if pth_model == AUTO else read_seed(pth_model)

    if getattr(trainer, "get_seed_from_checkpoint", None) is not read_seed:
        return False
    trainer.get_seed_from_checkpoint = get_seed_from_checkpoint  # type: ignore[attr-defined]
    return True


def _seed_of_command() -> int | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seed", type=int)
    return parser.parse_known_args()[0].seed


def keep_float32_in_conversion() -> bool:
    """Keep xtuner from rounding a DeepSpeed folder to float16 before `convert pth_to_hf` sees it, `--fp32` or not."""
    from xtuner.utils import zero_to_any_dtype

    if torch.float32 == zero_to_any_dtype.DEFAULT_DTYPE:
        return False
    # The default is bound in the signature: changing the constant would not reach it.
    zero_to_any_dtype.get_state_dict_from_zero_checkpoint = functools.partial(
        zero_to_any_dtype.get_state_dict_from_zero_checkpoint, dtype=torch.float32
    )
    return True


def history_method(owner: type, name: str) -> Callable[..., Any]:
    """Stand in for `builtins.getattr` in a checkpoint, through which a HistoryBuffer pickles four of its methods.

    Raises:
        ValueError: The checkpoint asks for anything else.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise ValueError(f"a training checkpoint must not ask for {name!r} of {owner!r}")
    return getattr(HistoryBuffer, name)


def _admitted() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numeric = [getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "UInt32DType")]
    return [
        *(HistoryBuffer, ConfigDict, np.dtype, np.ndarray, *numeric),
        *(ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address),
        (history_method, "builtins.getattr"),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    ]


_EVERYWHERE = (
    block_broken_bitsandbytes,  # the first: the others import what may import it
    describe_old_gpu_to_xtuner,
    start_alone_without_mpi,
    start_apart_under_slurm,
    load_checkpoints_safely,
    accept_resume_auto,
    keep_float32_in_conversion,
    name_settings,
    accumulate_in_float32,
)
_WITHOUT_GPU = (
    describe_cpu_to_xtuner,
    distribute_on_cpu,
    wrap_on_cpu,
    gather_without_gradients,
    gather_without_compiling,
    use_onednn,
)
