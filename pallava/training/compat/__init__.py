"""Every work-around for the libraries below us, each with its reason, its guard and a test that says when to drop it.

`apply` runs when `pallava.training` is imported, which our configs do while they are parsed: before xtuner reads a
checkpoint's seed, chooses the precision of DeepSpeed, or starts the processes' group.
"""

from pallava.model.versions import block_broken_bitsandbytes
from pallava.training.compat.checkpoints import keep_float32_in_conversion, load_checkpoints_safely
from pallava.training.compat.deepspeed import (
    gather_without_compiling,
    gather_without_gradients,
    start_alone_without_mpi,
)
from pallava.training.compat.device import (
    describe_cpu_to_xtuner,
    describe_old_gpu_to_xtuner,
    distribute_on_cpu,
    wrap_on_cpu,
)

_WORKAROUNDS = (
    block_broken_bitsandbytes,
    describe_cpu_to_xtuner,
    describe_old_gpu_to_xtuner,
    distribute_on_cpu,
    wrap_on_cpu,
    start_alone_without_mpi,
    gather_without_gradients,
    gather_without_compiling,
    load_checkpoints_safely,
    keep_float32_in_conversion,
)
_applied: list[str] = []


def apply() -> list[str]:
    """Apply the work-arounds that this machine and these versions need, once.

    Returns:
        Names of those that were needed.
    """
    if not _applied:
        _applied.extend(workaround.__name__ for workaround in _WORKAROUNDS if workaround())
    return list(_applied)
