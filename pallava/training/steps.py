"""Optimizer steps among the iterations: each consumes as many batches as gradients are accumulated."""

from typing import Any

from pallava.errors import PallavaError


def accumulative_counts(runner: Any) -> int:
    """Return the number of iterations of an optimizer step."""
    wrapper = runner.optim_wrapper
    if hasattr(wrapper, "_accumulative_counts"):
        return int(wrapper._accumulative_counts)
    return int(runner.model.gradient_accumulation_steps())  # DeepSpeed's engine


def ends_step(runner: Any) -> bool:
    """Return whether the current iteration is the last one of an optimizer step, or of the training."""
    done = runner.iter + 1
    return done % accumulative_counts(runner) == 0 or done == runner.max_iters


def check_length(num_iters: int, counts: int) -> None:
    """Refuse a training under DeepSpeed that ends before its first optimizer step: it would learn nothing.

    The plain runner makes a step of what is left at the end.

    Raises:
        PallavaError: The training has fewer iterations than the first step.
    """
    if num_iters < counts:
        raise PallavaError(
            f"a training must have at least the {counts} iterations of an optimizer step, got {num_iters}; give more "
            "rows or epochs, or a lower accumulative_counts"
        )


def is_due(runner: Any, interval: int) -> bool:
    """Return whether a multiple of `interval` falls into the optimizer step that ends with the current iteration."""
    counts = accumulative_counts(runner)
    last_end = runner.iter // counts * counts
    return interval > 0 and ends_step(runner) and (runner.iter + 1) // interval > last_end // interval
