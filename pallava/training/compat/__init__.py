"""Every work-around for the libraries below us, each with its reason, its guard and a test that says when to drop it.

`apply` runs when `pallava.training` is imported, which our configs do while they are parsed: before xtuner reads a
checkpoint's seed, chooses the precision of DeepSpeed, or starts the processes' group.
"""

import functools

from pallava.model.versions import block_broken_bitsandbytes
from pallava.training.compat import checkpoints, deepspeed, device

_WORKAROUNDS = (
    block_broken_bitsandbytes,
    device.describe_cpu_to_xtuner,
    device.describe_old_gpu_to_xtuner,
    device.distribute_on_cpu,
    device.wrap_on_cpu,
    deepspeed.start_alone_without_mpi,
    deepspeed.gather_without_gradients,
    deepspeed.gather_without_compiling,
    checkpoints.load_checkpoints_safely,
    checkpoints.keep_float32_in_conversion,
)


@functools.cache
def apply() -> tuple[str, ...]:
    """Apply the work-arounds that this machine and these versions need, once, and return their names."""
    return tuple(workaround.__name__ for workaround in _WORKAROUNDS if workaround())
