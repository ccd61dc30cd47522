"""Checkpoints of a run: opened without running what they hold, resumed on torch 2.6 or newer, converted exactly."""

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

_HISTORY_METHODS = ("min", "max", "mean", "current")


class _TorchLoadingSafely(types.ModuleType):
    """Stands for `torch` in a module of another library; only its `load` differs."""

    @staticmethod
    def load(file: Any, map_location: Any = None, **_: Any) -> Any:
        """Load with `weights_only=True`, but admit, for this call alone, what mmengine and DeepSpeed write."""
        with torch.serialization.safe_globals(_admitted()):
            return torch.load(file, map_location=map_location, weights_only=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def load_checkpoints_safely() -> bool:
    """Make mmengine load its own checkpoints from torch 2.6 on, and xtuner's converter execute nothing in a file.

    mmengine (`--resume` of a file) and xtuner (the seed of a resumed run) use torch's default, which refuses their logs
    (`Unsupported global: mmengine.logging.history_buffer.HistoryBuffer`). xtuner's `guess_load_checkpoint` and its
    reader of DeepSpeed folders (`xtuner convert`) turn safety off. Scripts import these functions by name before we
    can replace them; what they see as `torch` can be replaced.
    """
    from mmengine.runner import checkpoint
    from xtuner.model import utils as model_utils
    from xtuner.tools import utils as tool_utils
    from xtuner.utils import zero_to_any_dtype

    for module in (checkpoint, tool_utils, model_utils, zero_to_any_dtype):
        module.torch = _TorchLoadingSafely("torch")
    return True


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
