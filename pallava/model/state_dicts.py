"""Weights by their keys: renamed by tables, compared, and loaded with every key accounted for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pallava.errors import PallavaError

StateDict = dict[str, Tensor]
Renames = tuple[tuple[str, str | None], ...]
"""(part of a published key, what stands there in ours); None drops the key."""

PLIP_RENAMES: Renames = (
    ("vision_model.embeddings.position_ids", None),  # a buffer that newer transformers recompute
    ("post_layrnorm", "post_layernorm"),
)
CONNECTOR_RENAMES: Renames = (
    ("model.bert.embeddings.position_ids", None),  # never read: the queries come as embeddings
    (".self.", ".attention."),
    ("model.bert.", "qformer."),
    ("model.mlp.model.", "projection."),
    ("model.norm.", "norm."),
)


def rename_keys(state: Mapping[str, Tensor], renames: Renames) -> StateDict:
    """Walks a table of renames over all keys; every row is applied to every key, in order.

    Raises:
        PallavaError: Two keys become one.
    """
    renamed = {}
    for key, value in state.items():
        new: str | None = key
        for old_part, new_part in renames:
            if new is not None and old_part in new:
                new = None if new_part is None else new.replace(old_part, new_part)
        if new in renamed:
            raise PallavaError(f"The weights hold the same under two names: {key} is {new}, which came before.")
        if new is not None:
            renamed[new] = value
    return renamed


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The entries under a prefix, without it; all of them where none has it."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside or dict(state)


def compare_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Says which keys are missing, unexpected or reshaped; empty if the two agree."""
    both = expected.keys() & found.keys()
    report = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "reshaped": sorted(
            f"{key}: {tuple(found[key].shape)} where {tuple(expected[key].shape)} is expected"
            for key in both
            if found[key].shape != expected[key].shape
        ),
    }
    return {kind: keys for kind, keys in report.items() if keys}


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    expected: Mapping[str, Tensor] | None = None,
    hint: str = "",
) -> None:
    """Loads weights of which no key may be missing, left over or of another shape.

    Args:
        module: Takes the weights; on the meta device it becomes the tensors themselves.
        state: Weights under the module's own keys.
        source: Where they come from, for the message.
        expected: The keys that must come; default: all of the module's.
        hint: Last sentence of the message.

    Raises:
        PallavaError: Lists missing, unexpected and reshaped keys, or those with numbers that are not finite.
    """
    own = module.state_dict()
    report = compare_keys(own if expected is None else expected, state)
    if report:
        wrong = f"The weights in {source} do not fit {type(module).__name__}: {list_keys(report)}."
        raise PallavaError(f"{wrong} {hint}" if hint else wrong)
    check_finite(state, source)
    on_meta = any(tensor.is_meta for tensor in own.values())
    if not on_meta:
        state = {key: value.to(own[key].dtype) if key in own else value for key, value in state.items()}
    module.load_state_dict(state, strict=expected is None, assign=on_meta)


def check_finite(state: Mapping[str, Tensor], source: object) -> None:
    """Refuses weights with NaN or infinity in them, which no training that went well leaves.

    Raises:
        PallavaError: Lists their keys.
    """
    if wrong := sorted(key for key, value in state.items() if not _is_finite(value)):
        raise PallavaError(
            f"The weights in {source} are broken: {len(wrong)} hold NaN or infinity ({shorten(wrong)}). Copy or "
            "download them again, or take an earlier checkpoint."
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not value.numel() or not value.is_floating_point():
        return True
    low, high = (value if value.element_size() > 1 else value.float()).detach().aminmax()  # copies nothing; keeps NaN
    return bool(torch.isfinite(low) and torch.isfinite(high))


def shorten(keys: list[str]) -> str:
    """The first five keys, and how many more."""
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def list_keys(report: Mapping[str, list[str]]) -> str:
    """What is wrong with keys, kind by kind, such as "2 missing: a, b"; empty if nothing is."""
    return "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in report.items() if keys)
