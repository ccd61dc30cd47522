"""Steps with a loss or gradient that is not finite: skipped, counted, and the end of the training if they go on."""

from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pallava.errors import PallavaError
from pallava.model.weights import shorten
from pallava.training.steps import ends_step

SKIPPED = "skipped_steps"  # in the message hub, and so in each checkpoint
_IN_A_ROW = "skipped_steps_in_a_row"


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Counts optimizer steps that were skipped because a loss or gradient was NaN or infinite, and names their samples.

    `FiniteOptimWrapper`, or DeepSpeed, skips a step on all processes alike: the gradients are those of all. The counts
    are in the checkpoints. In fp16 a step that only the loss scale skips does not count towards the limit.

    Args:
        max_in_a_row: Number of skipped steps, one after the other, that ends the training.
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        self._max_in_a_row = max_in_a_row
        self._ids: list[str] = []
        self._not_finite: list[str] = []

    def before_train(self, runner: Any) -> None:
        """Make DeepSpeed look at float32 gradients as it does at half precision's."""
        optimizer = runner.optim_wrapper.optimizer
        if hasattr(optimizer, "check_grad_overflow"):
            optimizer.check_grad_overflow = True

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count at the end of an optimizer step.

        Raises:
            PallavaError: Too many steps in a row were skipped.
        """
        ids = list((data_batch.get("data_samples") or {}).get("ids", []))
        self._ids += ids
        if not torch.isfinite(torch.as_tensor(outputs["loss"])):
            self._not_finite += ids
        if not ends_step(runner):
            return
        if _is_skipped(runner):
            self._count(runner)
        else:
            runner.message_hub.update_info(_IN_A_ROW, 0)
        self._ids, self._not_finite = [], []

    def _count(self, runner: Any) -> None:
        known = runner.message_hub.runtime_info
        gathered = all_gather_object((self._not_finite, self._ids))
        losses = [name for not_finite, _ in gathered for name in not_finite]
        every = [name for _, ids in gathered for name in ids]
        what = "a loss" if losses else "a gradient"
        is_scale = not losses and _has_loss_scale(runner)
        total, in_a_row = known.get(SKIPPED, 0) + 1, known.get(_IN_A_ROW, 0) + (not is_scale)
        runner.message_hub.update_info(SKIPPED, total)
        runner.message_hub.update_info(_IN_A_ROW, in_a_row)
        rows = f"row{'s' * (len(losses or every) != 1)} {shorten(losses or every)}"
        runner.logger.warning(
            f"iteration {runner.iter + 1}: {'the loss scale was too large' if is_scale else f'{what} is not finite'}; "
            f"the step was skipped ({rows}; {total} skipped so far)"
        )
        if in_a_row >= self._max_in_a_row:
            raise PallavaError(
                f"{in_a_row} optimizer steps in a row were skipped, since {what} is not finite (last: {rows}); lower "
                "the learning rate, look at these rows, or resume from an earlier checkpoint"
            )


def _is_skipped(runner: Any) -> bool:
    if hasattr(runner.optim_wrapper, "is_skipped"):
        return bool(runner.optim_wrapper.is_skipped)
    return bool(getattr(runner.optim_wrapper.optimizer, "overflow", False))  # DeepSpeed's


def _has_loss_scale(runner: Any) -> bool:
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    if scaler is not None:
        return bool(scaler.is_enabled())
    return bool(getattr(getattr(runner.model, "model", None), "fp16_enabled", lambda: False)())
