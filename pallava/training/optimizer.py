"""AdamW in named groups of parameters, each at its own learning rate, in a precision that the device has."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.training.hooks.metrics import TrainingMetricsHook as GroupLearningRateHook  # noqa: F401 - in old configs

_PRECISIONS = ("auto", "bfloat16", "float16", "float32")


@OPTIMIZERS.register_module()
def grouped_adamw(
    params: Iterable[nn.Parameter], lr: float, lr_mults: Mapping[str, float] | None = None, **options: Any
) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters, in one group for each name that the model gave them in `lr_group`.

    Under `--deepspeed` xtuner keeps `optimizer` alone of a config's `optim_wrapper`, and a constructor or
    `paramwise_cfg` beside it would be lost. This function works there and in the plain runner alike.

    Args:
        params: Parameters, frozen ones included; `parameter.lr_group` names the group (default: "llm").
        lr: Learning rate of every group that `lr_mults` does not name.
        lr_mults: Factor on `lr` by group. A name without parameters is ignored: a connector may be frozen.
        **options: Options of AdamW: betas, weight_decay, eps.

    Raises:
        PallavaError: Nothing is trainable, or AdamW does not have an option.
    """
    members: dict[str, list[nn.Parameter]] = {}
    for parameter in params:
        if parameter.requires_grad:
            members.setdefault(getattr(parameter, "lr_group", "llm"), []).append(parameter)
    if not members:
        raise PallavaError(
            "the model must have trainable weights; leave the language model or the connector unfrozen, or set llm_lora"
        )
    mults = lr_mults or {}
    # mmengine logs the first group as `lr`: the one that runs at the plain rate.
    names = sorted(members, key=lambda name: (name in mults, name))
    groups = [{"params": members[name], "lr": lr * mults.get(name, 1.0), "name": name} for name in names]
    try:
        return torch.optim.AdamW(groups, lr=lr, **options)
    except TypeError as error:
        raise PallavaError(f"optim_wrapper.optimizer has a setting that AdamW does not have: {error}") from None


class FiniteOptimWrapper(OptimWrapper):
    """mmengine's wrapper, but a step whose gradients are not finite leaves the weights alone: `is_skipped` is set."""

    is_skipped = False

    def step(self, **kwargs: Any) -> None:
        """Clip the gradients and update the weights, if all gradients are finite; they are so on all processes."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.is_skipped = not torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if not self.is_skipped:
            super().step(**kwargs)


class FiniteAmpOptimWrapper(FiniteOptimWrapper, AmpOptimWrapper):
    """The same in mixed precision; in fp16, the loss scale skips steps, too, in which it was too large."""

    def step(self, **kwargs: Any) -> None:
        """Update the weights if all gradients are finite."""
        if not self.loss_scaler.is_enabled():
            super().step(**kwargs)
            return
        before = self.loss_scaler.get_scale()
        AmpOptimWrapper.step(self, **kwargs)  # the scaler itself skips, and must see what it skips
        self.is_skipped = self.loss_scaler.get_scale() < before


@OPTIM_WRAPPERS.register_module()
def precise_optim_wrapper(optimizer: torch.optim.Optimizer, precision: str = "auto", **options: Any) -> OptimWrapper:
    """Build mmengine's wrapper for a precision: bf16 where the device has it, else fp16, else (on a CPU) float32.

    "bfloat16", "float16" (with a dynamic loss scale) or "float32" insist on it. The other options are those of
    mmengine's OptimWrapper: clip_grad, accumulative_counts. Only the plain runner uses it; under `--deepspeed` xtuner
    makes the same choice.

    Raises:
        PallavaError: The precision is unknown, or half precision on a CPU.
    """
    if precision not in _PRECISIONS:
        raise PallavaError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if precision == "auto":
        precision = str(device_dtype()).removeprefix("torch.")
        print_log(f"training in {precision}, the best that this device has", logger="current")
    if precision == "float32":
        return FiniteOptimWrapper(optimizer=optimizer, **options)
    if not torch.cuda.is_available():
        raise PallavaError(f"precision={precision!r} needs a GPU, and none was found; set precision='auto'")
    loss_scale: Any = "dynamic" if precision == "float16" else {"enabled": False}  # bf16 has the range of float32
    return FiniteAmpOptimWrapper(optimizer=optimizer, dtype=precision, loss_scale=loss_scale, **options)
