"""What a training is watched by: loss, rates, gradients, speed, padding, waiting and memory of each optimizer step."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from torch import Tensor

from pallava.io.files import append_line, report_os_errors
from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pallava.training.model import unwrap
from pallava.training.steps import ends_step

METRICS_FILE = "metrics.jsonl"
_HISTORY = 1000  # optimizer steps that the logs may average over
_NUM_SUMS = 7  # batches, loss, samples, taught tokens, padding, seconds, seconds of waiting


@HOOKS.register_module()
class TrainingMetricsHook(Hook):
    """Measures every optimizer step, for the log and TensorBoard, and as a line of ``vis_data/metrics.jsonl``.

    A line has `iteration`, `time` (seconds since 1970), `loss` (mean over the batches and processes of the step), `lr`
    and `<group>_lr`, `grad_norm` (null where it is not computed, or the step was skipped), `skipped_steps` (so far),
    `samples_per_second`, `tokens_per_second` (tokens with a label), `padding_share` (of the positions that the language
    model computes), `uneven_share` (of the positions that all processes could compute while the one with the longest
    batch does: the others wait for it in each micro-step), `waiting_share` (of the time, for data, of the process that
    waits longest) and `memory` (peak in MB, of the process that needs most: of its GPU since the last line of the log,
    or without one of itself). Samples and tokens are those of all processes. The time is that of training alone: chats,
    checkpoints and logging are left out. What is not finite is null.
    """

    priority = 55  # after what measures and counts (NORMAL), before the logger (BELOW_NORMAL)

    def __init__(self) -> None:
        self._start = _Start()
        self._begun = 0.0
        self._sums = torch.zeros(_NUM_SUMS, dtype=torch.float64)
        self._positions: list[int] = []  # of each batch of the step
        self._skipped = 0

    def before_run(self, runner: Any) -> None:
        """Start a clock behind all hooks, so that their work is neither training nor waiting."""
        runner.register_hook(self._start)

    def before_train(self, runner: Any) -> None:
        """Remember what was skipped before."""
        self._skipped = _skipped_steps(runner)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Log `train/<name>_lr` for each named group but the first, whose rate mmengine logs as `lr`."""
        self._begun = time.perf_counter()
        for name, rate in _rates(runner).items():
            if name != "lr":
                runner.message_hub.update_scalar(f"train/{name}", rate)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add up what this batch was, and log it at the end of an optimizer step."""
        loss = runner.message_hub.get_scalar("train/loss").current()  # on the CPU by now, unlike the outputs
        num_visual_tokens = unwrap(runner.model).network.config.num_visual_tokens
        *counts, positions = count_tokens(data_batch["data"], num_visual_tokens)
        seconds = time.perf_counter() - self._start.time, self._begun - self._start.time
        size = len(data_batch["data"]["input_ids"])
        self._sums += torch.tensor([1, loss, size, *counts, *seconds], dtype=torch.float64)
        self._positions.append(positions)
        if ends_step(runner):
            self._log(runner)
            self._sums.zero_()
            self._positions.clear()

    def _log(self, runner: Any) -> None:
        # One exchange a step, where the processes have just waited for each other's gradients.
        mine = torch.cat([self._sums, torch.tensor([_memory(), *self._positions], dtype=torch.float64)])
        metrics = summarize(torch.stack(all_gather(mine)))
        skipped = _skipped_steps(runner)
        is_skipped, self._skipped = skipped > self._skipped, skipped
        norm = None if is_skipped else _grad_norm(runner)
        loss = metrics.pop("loss")  # of all processes; the log has mmengine's, of one
        _show(runner, {"grad_norm": norm, "skipped_steps": skipped, **metrics})
        if is_main_process():
            line = {"iteration": runner.iter + 1, "time": time.time(), "loss": loss, **_rates(runner)}
            _write(runner, {**line, "grad_norm": norm, "skipped_steps": skipped, **metrics})


class _Start(Hook):
    """Knows when the last hook was done, which is when the loop begins to wait for the next batch."""

    priority = "LOWEST"
    time = 0.0

    def before_train(self, runner: Any) -> None:
        self.time = time.perf_counter()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.time = time.perf_counter()


def count_tokens(data: dict[str, Tensor], num_visual_tokens: int) -> tuple[int, int, int]:
    """Return the taught tokens, the padded positions and all positions of a batch of `collate`.

    An image's marker takes `num_visual_tokens` positions in the language model, to whose longest row others are padded.
    """
    is_image = (data["input_ids"] == IMAGE_TOKEN_INDEX).sum(1)
    lengths = data["attention_mask"].sum(1) + (num_visual_tokens - 1) * is_image  # (B,)
    positions = len(lengths) * int(lengths.max())
    return int((data["labels"] != IGNORE_INDEX).sum()), positions - int(lengths.sum()), positions


def summarize(sums: Tensor) -> dict[str, float]:
    """Return the metrics of a step from each process's sums, memory and positions (processes, 7 + 1 + batches)."""
    batches, loss, samples, taught, padding = sums[:, :5].sum(0).tolist()
    seconds, positions = sums[:, 5].max().item(), sums[:, 8:]
    return {
        "loss": loss / batches,
        "samples_per_second": samples / seconds,
        "tokens_per_second": taught / seconds,
        "padding_share": padding / positions.sum().item(),
        "uneven_share": 1 - (positions.mean(0).sum() / positions.amax(0).sum()).item(),
        "waiting_share": (sums[:, 6] / sums[:, 5]).max().item(),
        "memory": round(sums[:, 7].max().item()),
    }


def _rates(runner: Any) -> dict[str, float]:
    first, *others = runner.optim_wrapper.optimizer.param_groups
    return {"lr": first["lr"], **{f"{group['name']}_lr": group["lr"] for group in others if "name" in group}}


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource  # Windows lacks it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # which Linux gives in KB


def _skipped_steps(runner: Any) -> int:
    counted = getattr(runner.model, "skipped_steps", 0)  # by DeepSpeed
    return int(runner.message_hub.get_info("skipped_steps", counted))


def _grad_norm(runner: Any) -> float | None:
    if hasattr(runner.model, "get_global_grad_norm"):  # DeepSpeed's
        norm = runner.model.get_global_grad_norm()
    else:
        history = runner.message_hub.log_scalars.get("train/grad_norm")  # mmengine's, if gradients are clipped
        norm = None if history is None else history.current()
    return None if norm is None else float(norm)


def _show(runner: Any, metrics: dict[str, float | None]) -> None:
    """Put metrics where mmengine's logger looks, and not into the checkpoints: they are of this machine."""
    logged = {"memory"} if torch.cuda.is_available() else set()
    logged |= set() if hasattr(runner.model, "get_global_grad_norm") else {"grad_norm"}
    for name, value in metrics.items():
        if value is not None and name not in logged:  # by mmengine itself
            scalars = runner.message_hub.log_scalars
            scalars.setdefault(f"train/{name}", HistoryBuffer(max_length=_HISTORY)).update(value)


def _write(runner: Any, line: dict[str, float | None]) -> None:
    path = Path(runner.log_dir, "vis_data", METRICS_FILE)
    finite = {name: None if value is None or not math.isfinite(value) else value for name, value in line.items()}
    with report_os_errors(f"cannot write '{path}'"):
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, json.dumps(finite))
