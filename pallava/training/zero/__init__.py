"""DeepSpeed's settings for us, found by name under ``--deepspeed``, and the float32 accumulation that they ask for.

``pallava_zero1`` cuts the optimizer among the processes and sends the gradients once in an optimizer step;
``pallava_zero2`` cuts the gradients, too, for which it sends them with every batch. Both add up the gradients of
several batches in float32, and send them in pieces of 5e7 elements while others are still computed.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

SETTINGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}
"""Files of settings by their names."""


def name_settings() -> bool:
    """Name our files of settings to xtuner's trainer, which finds its own by name alone."""
    from xtuner.configs import cfgs_name_path

    cfgs_name_path.update({name: str(path) for name, path in SETTINGS.items()})
    return True


def read_settings(name: str) -> dict[str, Any]:
    """Read one of our files."""
    return json.loads(SETTINGS[name].read_text(encoding="utf-8"))


def accumulate_in_float32() -> bool:
    """Make ZeRO's stages 1 and 2 do what ``data_types.grad_accum_dtype`` asks of them: add up gradients in float32.

    By itself DeepSpeed gives stage 1 in bf16 to an optimizer that sends nothing while it computes and fails at a
    gradient that is not finite, in the place of skipping the step. In fp16 it reduces a copy of the gradients and steps
    by those of each process alone. Stage 2 adds up in half precision all the same. Here, gradients are added up in
    float32 and rounded once, when they are sent; without that setting, all is as before.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Optimizer

    if "param.grad_accum.to(self.dtype)" not in inspect.getsource(Optimizer.get_gradient_for_reduction):
        return False
    choose, collect = DeepSpeedEngine._do_optimizer_sanity_check, Optimizer.get_all_grad_tensors

    def keep_zero(self: Any, optimizer: Any) -> Any:
        chosen = choose(self, optimizer)
        return "zero_optimization" if self.zero_optimization() else chosen

    def collect_in_float32(self: Any, parameters: list[nn.Parameter], dtype: Any) -> list[Tensor]:
        return [gradient.to(dtype) for gradient in collect(self, parameters, dtype)]

    DeepSpeedEngine._do_optimizer_sanity_check = keep_zero
    Optimizer.get_all_grad_tensors = collect_in_float32
    Optimizer.get_gradient_for_reduction = _round_sum
    Optimizer.get_param_gradient_attribute = lambda self, parameter: parameter.grad
    return True


def _round_sum(self: Any, parameter: Any) -> Tensor | None:
    """Return a gradient to be reduced, in place; the sum of those before takes its place, rounded."""
    if self.use_grad_accum_attribute and parameter.grad_accum is not None:
        parameter.grad, parameter.grad_accum = parameter.grad_accum.to(self.dtype), None
    return parameter.grad
