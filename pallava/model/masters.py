"""The float32 masters of a training in half precision, joined from the shards of DeepSpeed's optimizer.

``mp_rank_00_model_states.pt`` holds weights that were rounded for computing. ZeRO's stages 1 and 2 flatten the masters
of each group of parameters into one vector, padding at its end, and cut that into one piece for each process. The
layout is the one that DeepSpeed's own converter reads:
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/zero_to_fp32.py
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")


class _Unusable(Exception):
    """The message says why the masters cannot be read."""


def with_masters(content: Mapping[str, Any], folder: Path, read: Callable[[Path], Any]) -> Mapping[str, Any]:
    """Return the weights in DeepSpeed's model states; each that is rounded is replaced by its float32 master.

    Where that cannot be, for example because a shard is missing, the rounded ones are returned, and a warning says so.

    Args:
        content: What ``mp_rank_00_model_states.pt`` holds.
        folder: The folder of the shards, ``*_optim_states.pt``.
        read: Unpickles a shard safely.

    Raises:
        PallavaError: A shard is damaged.
    """
    weights = content["module"]
    rounded = [key for key, value in weights.items() if isinstance(value, Tensor) and value.dtype in _HALF]
    if not rounded:
        return weights
    try:
        masters = _join_shards(content, folder, read)
        for key in masters.keys() & set(rounded):
            if not torch.equal(masters[key].to(weights[key].dtype), weights[key]):
                raise _Unusable(f"they differ from the rounded ones by more than the rounding, first in {key}")
    except _Unusable as reason:
        logging.getLogger(__name__).warning(
            f"the weights of '{folder}' are read as they were rounded to {weights[rounded[0]].dtype}, without their "
            f"float32 masters: {reason}"
        )
        return weights
    return {**weights, **masters}


def _join_shards(content: Mapping[str, Any], folder: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    shards = {int(found[1]): path for path in folder.iterdir() if (found := _SHARD.fullmatch(path.name))}
    if not shards:
        raise _Unusable("the folder has no shards of the optimizer (*_optim_states.pt)")
    try:
        states = [read(shards[rank])["optimizer_state_dict"] for rank in sorted(shards)]
        expected = max(states[0]["partition_count"])  # of each group of parameters
        if sorted(shards) != list(range(expected)):
            raise _Unusable(f"expected {expected} shards of the optimizer, got {len(shards)}")
        groups = zip(*(state["single_partition_of_fp32_groups"] for state in states), strict=True)
        joined: dict[str, Tensor] = {}
        for shapes, pieces in zip(content["param_shapes"], groups, strict=True):
            joined |= _cut(pieces, shapes)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _Unusable(f"the shards are not those of ZeRO's stage 1 or 2 ({type(error).__name__})") from None
    return joined


def _cut(pieces: Sequence[Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Cut the vector that is in pieces into weights, each with a memory of its own."""
    for piece in pieces:  # a few bytes, repeated, could fill the memory
        if piece.dtype != torch.float32 or piece.numel() * 4 > piece.untyped_storage().nbytes():
            raise TypeError
    weights, start = {}, 0
    for key, shape in shapes.items():
        first, last = start, start + math.prod(shape)
        start, within = last, []
        for piece in pieces:
            within.append(piece.detach()[max(first, 0) : max(last, 0)])
            first, last = first - len(piece), last - len(piece)
        weights[key] = torch.cat(within).view(shape)
    return weights
