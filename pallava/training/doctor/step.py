"""One training step on the meta device: what it would compute and hold, without a number of it in memory.

Floating-point tensors have a shape and no content; integers, which decide on shapes (where images are, what is taught),
are real. So the very code of the model runs, whatever its parts are, and 8 billion parameters take no memory.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from pallava.errors import PallavaError

_META, _CPU = torch.device("meta"), torch.device("cpu")
_aten = torch.ops.aten
# They take real masks and indices beside tensors without content, and the shape of the result depends on these.
_INDEXING = (_aten.index, _aten._unsafe_index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)


def count_flops(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Count the floating-point operations of forward and backward pass of a batch, as `FlopCounterMode` does.

    The model is one on the meta device, the batch a real one of its collate function.

    Raises:
        PallavaError: The model decides by what it computes, such as a mixture of experts, so that shapes do not do.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _run_step(model, batch, _Shapes())
    return counter.get_total_flops()


def count_activations(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Return the bytes that forward and backward pass hold at their peak beside weights and the weights' gradients.

    The batch itself is among them. Arguments and errors are those of `count_flops`; a pass of its own, since torch's
    counter keeps recomputed activations alive.
    """
    shapes = _Shapes(parameter.untyped_storage() for parameter in model.parameters())
    _run_step(model, batch, shapes)
    return shapes.peak


def _run_step(model: nn.Module, batch: Mapping[str, Any], shapes: "_Shapes") -> None:
    with _without_gradients(model), _kernels_of_a_card(), shapes:
        inputs = tree_map_only(Tensor, _to_shape, batch["data"])  # alive to the end, as in a trainer's loop
        try:
            model(inputs, mode="loss")["loss"].backward()
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            raise PallavaError(
                f"a step cannot be computed from shapes alone ({str(error).splitlines()[0][:80]}); measure it on a card"
            ) from None


def _to_shape(value: Tensor) -> Tensor:
    return _empty(value) if value.is_floating_point() or value.dtype == torch.uint8 else value  # which are pixels


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Drop each weight's gradient once it is complete: it is counted apart, and ZeRO-2 sends it away."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [each.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None)) for each in learnt]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Shapes(TorchDispatchMode):
    """Keeps floats without content and integers real, and counts the bytes of all tensors that are alive."""

    def __init__(self, known: Iterable[torch.UntypedStorage] = ()) -> None:
        super().__init__()
        self._known = {id(storage): storage for storage in known}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._run(func, args, kwargs or {})
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        is_meta = [value.is_meta for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not any(is_meta):
            if "device" not in kwargs:
                return func(*args, **kwargs)
            shape = func(*args, **{**kwargs, "device": _META})
            return shape if shape.is_floating_point() else func(*args, **{**kwargs, "device": _CPU})
        if not all(is_meta) and func.overloadpacket not in _INDEXING:
            args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else _empty(t), (args, kwargs))
        return func(*args, **{**kwargs, "device": _META} if "device" in kwargs else kwargs)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def forget(_: Any) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, forget)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)


def _empty(value: Tensor) -> Tensor:
    return torch.empty_like(value, device=_META)


@contextmanager
def _kernels_of_a_card() -> Iterator[None]:
    """Give meta tensors attention that keeps no scores, and autocast, which models switch off by their device."""
    with (
        mock.patch.object(nn.functional, "scaled_dot_product_attention", _fused_attention),
        mock.patch.object(torch, "autocast", _Autocast),
    ):
        yield


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run the kernel that CUDA takes where a batch is padded; on the meta device torch would keep all scores."""
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    run = _aten._scaled_dot_product_efficient_attention
    return run(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
