"""A hook that writes down what a test of a training wants to know."""

import json
import os
import zlib
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import Tensor, nn


class Probe(Hook):
    """Writes `probe_<rank>.jsonl` into the work directory: fingerprints, every raw loss, sizes of the first update.

    The process writes its number into `pid_<rank>`.
    """

    priority = "VERY_LOW"

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        self.file = Path(runner.work_dir, f"probe_{get_rank()}.jsonl")
        Path(runner.work_dir, f"pid_{get_rank()}").write_text(str(os.getpid()))
        self.start = {name: weight.detach().clone() for name, weight in trained(model).items()}
        self.write(kind="start", connector=fingerprint(model.connector.state_dict()), frozen=fingerprint(frozen(model)))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        images = len(data_batch["data"]["tiles_per_image"])
        loss, cached = (None if key not in outputs else float(outputs[key]) for key in ("loss", "cached_share"))
        self.write(kind="step", step=runner.iter + 1, loss=loss, images=images, cached=cached)
        if runner.iter == 0:
            weights = trained(unwrap(runner.model))
            moved = {name: (weights[name].detach() - self.start[name]).abs().flatten() for name in weights}
            parts = {"connector": "connector.", "lora_B": "lora_B"}
            parts = {part: key for part, key in parts.items() if any(key in name for name in moved)}
            medians = {
                part: torch.cat([size for name, size in moved.items() if key in name]).median().item()
                for part, key in parts.items()
            }
            self.write(kind="update", **medians)

    def after_train(self, runner) -> None:
        model = unwrap(runner.model)
        self.write(kind="end", connector=fingerprint(model.connector.state_dict()), frozen=fingerprint(frozen(model)))

    def write(self, **record: object) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")


def unwrap(model: nn.Module) -> nn.Module:
    while hasattr(model, "module"):
        model = model.module
    return model


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def fingerprint(state: dict[str, Tensor]) -> int:
    """A number that changes with any bit of any weight."""
    total = 0
    for name in sorted(state):
        total = zlib.crc32(state[name].detach().cpu().float().numpy().tobytes(), total)
    return total
