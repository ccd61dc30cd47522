"""Images that cannot be opened: counted over all processes, listed, and the end of the training if they are many."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors, write_text
from pallava.model.weights import shorten
from pallava.training.steps import ends_step

LIST_FILE = "bad_images.jsonl"
_KEY = "bad_images"  # in the message hub, and so in each checkpoint
_DETAIL = re.compile(r" \(|: |; ")  # what follows in a reason differs from image to image


@HOOKS.register_module()
class BadImagesHook(Hook):
    """Collects the rows that a `PALLaVADataset` with `on_bad_image` "skip" has replaced.

    Each row counts once, over all processes, epochs and resumed parts of a training. ``bad_images.jsonl`` in the work
    directory lists them (`index`, `id`, `image`, `reason`), and the log counts them at the end.
    """

    def __init__(self) -> None:
        self._new: list[dict[str, Any]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Exchange what was replaced at the end of an optimizer step, where the processes wait for each other anyway.

        Raises:
            PallavaError: More rows than the budget allows are bad, on all processes alike.
        """
        if not _skips(runner):
            return
        self._new += data_batch["data_samples"]["replaced"]
        if not ends_step(runner):
            return
        count = torch.tensor(len(self._new))
        all_reduce(count, "max")
        if count:
            self._collect(runner)

    def after_train(self, runner: Any) -> None:
        """List the bad images."""
        if not _skips(runner):
            return
        bad = runner.message_hub.get_info(_KEY, [])
        path = _write(runner, bad)
        counts = Counter(_DETAIL.split(each["reason"], maxsplit=1)[0] for each in bad).most_common()
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts) or "none"
        runner.logger.info(
            f"bad images: {len(bad)} of {len(runner.train_dataloader.dataset)} rows were replaced ({reasons}): "
            f"{shorten([each['image'] for each in bad])}; all of them are listed in '{path}'"
        )

    def _collect(self, runner: Any) -> None:
        known = {each["index"]: each for each in runner.message_hub.get_info(_KEY, [])}
        gathered = {each["index"]: each for rows in all_gather_object(self._new) for each in rows}
        self._new = []
        found = [each for index, each in sorted(gathered.items()) if index not in known]
        if not found:
            return
        bad = [*known.values(), *found]
        runner.message_hub.update_info(_KEY, bad)
        path, dataset, last = _write(runner, bad), runner.train_dataloader.dataset, bad[-1]
        runner.logger.warning(f"{len(bad)} bad images so far (row '{last['id']}', '{last['image']}': {last['reason']})")
        if len(bad) > dataset.bad_image_budget:
            raise PallavaError(
                f"{len(bad)} of {len(dataset)} rows have an image that cannot be opened, but max_bad_images="
                f"{dataset.max_bad_images} allows {dataset.bad_image_budget}; mend those in '{path}', or raise it "
                f"(last: '{last['image']}')"
            )


def _skips(runner: Any) -> bool:
    return getattr(runner.train_dataloader.dataset, "on_bad_image", "raise") == "skip"


def _write(runner: Any, bad: list[dict[str, Any]]) -> Path:
    path = Path(runner.work_dir, LIST_FILE)
    if is_main_process():
        with report_os_errors(f"cannot write '{path}'"):
            write_text(path, "".join(json.dumps(each) + "\n" for each in bad))
    return path
