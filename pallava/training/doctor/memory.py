"""Memory of a card by part, and what a checkpoint weighs: arithmetic on the parameters of a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pallava.four_bit import BYTES_PER_WEIGHT
from pallava.training.recompute import Choice
from pallava.training.zero import read_settings

_FLOAT32 = 4  # bytes
_ADAM = 2 * _FLOAT32  # two moments of a weight
_BUCKET = 500_000_000  # elements; DeepSpeed's default of reduce_bucket_size
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA = 1_500_000_000  # bytes of the CUDA context and NCCL beside torch's tensors, at the most
CARDS_GB = (24, 40, 80)
"""Sizes of cards that each plan is compared with."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one card by part, under one way to train."""

    runner: str  # "plain", "ZeRO-1" or "ZeRO-2"
    activation_checkpointing: Choice
    weights: int
    gradients: int
    optimizer: int  # moments, and under DeepSpeed the float32 masters
    buffers: int  # for gradients on their way, and the plain runner's copies of weights in half precision
    activations: int  # or what the optimizer's step takes in their place, if that is more
    cuda: int = _CUDA

    @property
    def total(self) -> int:
        """Return the sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.cuda

    def describe(self) -> str:
        """Return the way to train, and what it takes."""
        choice = f"activation_checkpointing={self.activation_checkpointing!r}"
        return f"{self.runner} with {choice} takes {self.total / 1e9:.1f} GB"

    def to_dict(self) -> dict[str, Any]:
        """Return bytes by part, and the cards that it fits."""
        return {**asdict(self), "total": self.total, "fits_gb": [gb for gb in CARDS_GB if self.total <= gb * 1e9]}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a model."""

    trained: int
    frozen_llm: int  # in the precision of the training
    frozen_others: int
    in_4bit: int = 0  # of the frozen language model, beside the former
    unpacked: int = 0  # of the largest layer in 4 bit, which is unpacked while it computes

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters":
        """Count those of a `PALLaVAModel`, each by its `lr_group`."""
        counts, unpacked = dict.fromkeys(("trained", "llm", "others", "4bit"), 0), 0
        for parameter in model.parameters():
            is_llm = getattr(parameter, "lr_group", "") == "llm"
            name = "trained" if parameter.requires_grad else "llm" if is_llm else "others"
            if getattr(parameter, "is_4bit", False):
                name, unpacked = "4bit", max(unpacked, parameter.numel())
            counts[name] += parameter.numel()
        return cls(counts["trained"], counts["llm"], counts["others"], counts["4bit"], unpacked)

    @property
    def total(self) -> int:
        """Return the number of all parameters."""
        return self.trained + self.frozen_llm + self.frozen_others + self.in_4bit

    def frozen_bytes(self, llm_type: torch.dtype, others_type: torch.dtype) -> int:
        """Return the bytes of all frozen weights in two types, and of those in 4 bit."""
        packed = round(BYTES_PER_WEIGHT * self.in_4bit) + llm_type.itemsize * self.unpacked
        return llm_type.itemsize * self.frozen_llm + others_type.itemsize * self.frozen_others + packed


def plain_memory(parameters: Parameters, dtype: torch.dtype, num_processes: int, **step: Any) -> Memory:
    """Return the memory of the plain runner (DDP), in which all but the frozen language model stays in float32.

    `dtype` is the precision of the computation; `step` are `activation_checkpointing` and `activations`, the bytes that
    `count_activations` returns.
    """
    trained = parameters.trained
    copies = dtype.itemsize * trained if dtype.itemsize < _FLOAT32 else 0  # autocast keeps them for the backward pass
    step["activations"] = max(step["activations"], _FLOAT32 * trained - copies)  # AdamW's roots of all moments
    return Memory(
        "plain",
        weights=parameters.frozen_bytes(dtype, torch.float32) + _FLOAT32 * trained,
        gradients=_FLOAT32 * trained,
        optimizer=_ADAM * trained,
        buffers=copies + (_FLOAT32 * trained if num_processes > 1 else 0),  # DDP's buckets hold every gradient again
        **step,
    )


def read_zero_settings(deepspeed: Mapping[str, Any] | None, stage: int) -> tuple[dict[str, Any], torch.dtype | None]:
    """Return `zero_optimization` for a stage, and the type that gradients are added up in (None: the training's).

    Those of `deepspeed`, a JSON of DeepSpeed's, or else of ours.
    """
    settings = read_settings(f"pallava_zero{stage}") if deepspeed is None else deepspeed
    given = (settings.get("data_types") or {}).get("grad_accum_dtype")
    return {**(settings.get("zero_optimization") or {}), "stage": stage}, _TYPES.get(str(given))


def zero_memory(
    parameters: Parameters,
    dtype: torch.dtype,
    num_processes: int,
    settings: Mapping[str, Any],
    accumulation: torch.dtype | None = None,
    **step: Any,
) -> Memory:
    """Return the memory under ZeRO-1 or ZeRO-2, where the whole model is in one precision.

    `settings` and `accumulation` are those of `read_zero_settings`; other arguments as in `plain_memory`.
    """
    share = -(-parameters.trained // num_processes)
    is_offloaded = (settings.get("offload_optimizer") or {}).get("device", "none") != "none"
    num_buckets = 1 + bool(settings.get("overlap_comm")) if settings.get("contiguous_gradients", True) else 0
    buffers = num_buckets * dtype.itemsize * int(float(settings.get("reduce_bucket_size", _BUCKET)))
    gradients = (accumulation or dtype).itemsize * (share if settings["stage"] == 2 else parameters.trained)
    if settings["stage"] == 2 and accumulation not in (None, dtype):
        gradients += dtype.itemsize * share  # those of the batch, before they are added
    # A gradient and a root of a moment in float32, when the buffers are free.
    step["activations"] = max(step["activations"], 0 if is_offloaded else 2 * _FLOAT32 * share - buffers)
    return Memory(
        f"ZeRO-{settings['stage']}",
        weights=parameters.frozen_bytes(dtype, dtype) + dtype.itemsize * parameters.trained,
        gradients=gradients,
        optimizer=0 if is_offloaded else (_FLOAT32 + _ADAM) * share,
        buffers=buffers,
        **step,
    )
