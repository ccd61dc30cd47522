"""Activation checkpointing: which parts compute their activations anew in the backward pass, and so hold fewer.

Losses and gradients stay the same: what dropout drew is drawn again. What is recomputed takes a third more time.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from pallava.errors import PallavaError
from pallava.prompts import IMAGE_TOKEN_INDEX

Choice = str | int
"""A member of `CHOICES`, or a number n: every n-th layer of the language model, and the connector."""
NAMED = ("none", "connector", "llm", "all")
CHOICES = (*NAMED, "auto")
TRIED: tuple[Choice, ...] = ("none", "connector", 4, 2, "all")
"""What "auto" tries, the fastest first."""


def check_choice(choice: Any) -> Choice:
    """Return a valid choice as it is.

    Raises:
        PallavaError: It is not in `CHOICES`, nor an integer of at least 1.
    """
    is_number = isinstance(choice, int) and not isinstance(choice, bool) and choice >= 1
    if not is_number and choice not in CHOICES:
        raise PallavaError(
            f"activation_checkpointing must be {', '.join(CHOICES)} or a number n of at least 1 (every n-th layer of "
            f"the language model), got {choice!r}"
        )
    return choice


def choice_of(settings: Mapping[str, Any]) -> Choice:
    """Return the choice in the arguments of a `PALLaVAModel`; old configs have `use_activation_checkpointing`.

    Raises:
        PallavaError: The choice is invalid.
    """
    use = settings.get("use_activation_checkpointing")
    if use is not None:
        return "all" if use else "none"
    return check_choice(settings.get("activation_checkpointing", "all"))


def recompute(model: Any, choice: Choice) -> None:
    """Switch activation checkpointing in the parts of a `PALLaVAModel`; an encoder that learns goes with the connector.

    "auto" is "all" until `pallava.training.doctor.auto` knows the data and the card.
    """
    is_all = choice in ("all", "auto") or isinstance(choice, int)
    _switch(model.llm, is_all or choice == "llm")
    model.connector.gradient_checkpointing = is_all or choice == "connector"
    if not model.freeze_visual_encoder:
        _switch(model.visual_encoder, is_all or choice == "connector")
    if isinstance(choice, int):
        _leave_out(model.llm, choice)


def count_positions(data: Mapping[str, Any], num_visual_tokens: int) -> int:
    """Return the positions that the language model computes in a batch of `collate`: rows times the longest one.

    An image takes at most `num_visual_tokens` of them.
    """
    images = (data["input_ids"] == IMAGE_TOKEN_INDEX).sum(1)  # (B,)
    lengths = data["attention_mask"].sum(1) + images * (num_visual_tokens - 1)
    return len(lengths) * int(lengths.max())


def _switch(part: Any, on: bool) -> None:
    if on:
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif part.supports_gradient_checkpointing:
        part.gradient_checkpointing_disable()


def _leave_out(llm: nn.Module, every: int) -> None:
    """Let the layers between the n-th ones keep their activations: each stack asks for every layer.

    In transformers 4.57 each layer asks for itself.
    """
    for stack in list(llm.modules()):
        if getattr(stack, "gradient_checkpointing", False):
            lists = [child for child in stack.children() if isinstance(child, nn.ModuleList)]
            kept = {layer for layers in lists for index, layer in enumerate(layers) if index % every}
            for layer in kept:
                if hasattr(layer, "gradient_checkpointing"):
                    layer.gradient_checkpointing = False  # type: ignore[assignment]
            stack._gradient_checkpointing_func = partial(_run, stack._gradient_checkpointing_func, kept)  # type: ignore


def _run(checkpoint: Any, kept: set[nn.Module], call: Any, *inputs: Any) -> Any:
    return call(*inputs) if getattr(call, "__self__", None) in kept else checkpoint(call, *inputs)
