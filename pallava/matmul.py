"""Faster products of float32 matrices on AMD CPUs.

torch multiplies them with MKL, which does not use AVX-512 on AMD. oneDNN, which torch includes for other types, does:
benchmarks/matmul.py compares them.
"""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CPU_INFO = Path("/proc/cpuinfo")
_MIN_WORK = 1 << 20  # multiplications in a product beside which the call of a Python function does not count
_libraries: list[Any] = []  # torch takes a kernel back with the object that registered it


@functools.cache
def use_onednn() -> bool:
    """Let oneDNN multiply large matrices of float32 in this process, where it is the faster one.

    Results differ from MKL's in their last bits, as those of two CPUs do. The context
    ``torch.backends.mkldnn.flags(enabled=False)`` brings MKL's back.

    Returns:
        Whether oneDNN multiplies.
    """
    has_mkl, has_onednn = torch.backends.mkl.is_available(), hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not (has_mkl and has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()):
        return False
    replace_kernels()
    return True


def replace_kernels() -> None:
    """Let oneDNN multiply, whatever this CPU is."""
    with warnings.catch_warnings():  # that kernels are replaced
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL")
        library.impl("mm", _mm, "CPU")
        library.impl("addmm", _addmm, "CPU")
    _libraries.append(library)


def _is_amd() -> bool:
    return _CPU_INFO.is_file() and "AuthenticAMD" in _CPU_INFO.read_text(encoding="utf-8", errors="replace")


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (M, K) by (K, N)."""
    if not _suits(left, right):
        return torch.ops.aten.mm.out(left, right, out=left.new_empty(0))
    (rows, inner), columns = left.shape, right.shape[1]
    # oneDNN wants the left one row by row. A gradient's is not: to transpose the right one and the result can be less.
    is_apart = left.stride(1) != 1 and right.stride(0) != 1
    if is_apart and columns * (inner + rows) < rows * inner:
        return _multiply(right.t(), left.t()).t().contiguous()
    return _multiply(left, right)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if bias.shape == right.shape[1:] and bias.dtype == left.dtype and beta == alpha == 1 and _suits(left, right):
        return _multiply(left, right, bias)
    return torch.ops.aten.addmm.out(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _suits(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.dim() == right.dim() == 2
        and left.shape[1] == right.shape[0]
        and left.numel() * right.shape[1] >= _MIN_WORK
        and bool(torch.backends.mkldnn.enabled)
    )


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
