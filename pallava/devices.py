"""Where a command computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pallava.errors import PallavaError

if TYPE_CHECKING:
    import torch


def find_device(name: str, local_rank: int = 0) -> str:
    """The device of that name; of "auto" a GPU if there is one, of several processes to each its own.

    Raises:
        PallavaError: There is no such device.
    """
    import torch

    if name == "auto":
        return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PallavaError(f"there is no device {name!r} here ({str(error).splitlines()[0]})") from None
    return name


def device_dtype() -> torch.dtype:
    """Return the default type of a training: bf16 if the device has it, else fp16, and float32 on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slower than float32
    return torch.bfloat16 if has_bf16 else torch.float16
