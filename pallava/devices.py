"""The device that a command computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pallava.errors import PallavaError

if TYPE_CHECKING:
    import torch


def find_device(name: str, local_rank: int = 0) -> str:
    """Return the name of an available device; ``auto`` is a GPU if one is available, for each local rank its own.

    On a CPU, matrix products are computed by the faster library from now on (`pallava.matmul`).

    Raises:
        PallavaError: The device is not available.
    """
    import torch

    if name == "auto":
        name = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("its tensors are empty")
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PallavaError(f"device {name!r} is not available; choose auto, cpu or cuda ({reason})") from None
    if torch.device(name).type == "cpu":
        from pallava.matmul import use_onednn

        use_onednn()
    return name


def device_dtype() -> torch.dtype:
    """Return the default type of a training: bf16 if the device has it, else fp16, and float32 on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slower than float32
    return torch.bfloat16 if has_bf16 else torch.float16
