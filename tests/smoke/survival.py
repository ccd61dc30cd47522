"""Trainings that are struck by signals, and checkpoints that are compared bit by bit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pallava.training.zero import read_settings
from tests.smoke.test_training import environment
from tests.tiny.training import save_data, save_parts, write_config

LIMIT = 600  # seconds after which a training is taken to hang; one of 240 steps needs two minutes on busy cores
SEED = ("--seed", "3")
AUTO = ("--resume", "auto", *SEED)
BF16 = {**read_settings("pallava_zero1"), "bf16": {"enabled": True}, "fp16": {"enabled": False}}  # as on a GPU
RUNNERS = {
    "plain": ((), 1),
    "plain-2": ((), 2),
    "zero1-2": (("--deepspeed", "pallava_zero1"), 2),
    "zero2": (("--deepspeed", "deepspeed_zero2"), 1),
    "zero2-2": (("--deepspeed", "deepspeed_zero2"), 2),
    "bf16-2": (("--deepspeed", "bf16.json"), 2),
}
STEPS, EPOCH = 28, 12  # iterations; the rows of a batch are such that all runners have the same epoch


def write_tiny(folder: Path) -> Path:
    """Write config, parts and data of a training whose rows have an image or not."""
    (folder / "bf16.json").write_text(json.dumps(BF16))
    data = save_data(folder, num_rows=24, num_without_image=8)
    return write_config("pallava_instruction_tuning", save_parts(folder), data, folder / "tiny.py", num_steps=STEPS)


@dataclass
class Training:
    """A running training with all processes that it started."""

    process: subprocess.Popen
    work_dir: Path
    log: Path
    trainers: int
    seen: int = field(init=False)  # records of earlier runs in the same folder

    def __post_init__(self) -> None:
        self.seen = len(self.records())

    def records(self) -> list[dict[str, Any]]:
        """Return what `tests.tiny.probe` has written in all runs of this folder."""
        file = self.work_dir / "probe_0.jsonl"
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def has_begun(self, steps: int = 0) -> bool:
        """Return whether this run has done so many steps."""
        return len(self.records()) > self.seen + steps

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return whether it came true before the training ended."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"nothing happened for {LIMIT} s: {self.output()[-2000:]}")
            time.sleep(0.01)
        return True

    def end(self, limit: float = LIMIT) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"did not end within {limit} s: {self.output()[-2000:]}")

    def tree(self) -> list[psutil.Process]:
        """Return all processes, the launcher first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def kill(self) -> None:
        """Kill all processes at once. Workers of a loader end when they see that their process is gone."""
        trainers = [int(file.read_text() or 0) for file in self.work_dir.glob("pid_*")]
        known = [self.process.pid, *trainers]
        # Looking for processes takes a second, in which a training would be over.
        for pid in known if len(trainers) == self.trainers and all(trainers) else [each.pid for each in self.tree()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def output(self) -> str:
        """Return what all processes have printed."""
        return self.log.read_text(errors="replace")


def launch(config: Path, work_dir: Path, runner: str, *arguments: str, limits: Any = None, **settings: Any) -> Training:
    """Start a training with settings by their last names, or by full keys with `__` for a dot."""
    deepspeed, processes = RUNNERS[runner]
    steps = settings.pop("steps", STEPS)
    options = {
        "train_dataloader.batch_size": 2 // processes,
        "train_dataloader.num_workers": 1,
        "optim_wrapper.accumulative_counts": settings.pop("accumulation", 1),
        "default_hooks.checkpoint.interval": settings.pop("save", 4),
        "default_hooks.checkpoint.max_keep_ckpts": settings.pop("keep", -1),
        "default_hooks.sample_chat.every_n_iters": settings.pop("chat", 6),
        "train_cfg.max_iters": steps,
        "param_scheduler.0.end": steps,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    words = ["pallava", "train", str(config), "--work-dir", str(work_dir), *deepspeed, *arguments]
    words += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    log = work_dir.with_name(f"{work_dir.name}.log")
    for file in work_dir.glob("pid_*"):
        file.unlink()
    with log.open("a") as file:
        process = subprocess.Popen(
            words,
            env=environment(NPROC_PER_NODE=str(processes)),
            cwd=config.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C to its group is none to the tests
            preexec_fn=limits,
        )
    return Training(process, work_dir, log, processes)


def train(config: Path, work_dir: Path, runner: str, *arguments: str, **settings: Any) -> Path:
    """Train to the end; return the last checkpoint."""
    training = launch(config, work_dir, runner, *arguments, **settings)
    assert training.end() == 0, training.output()[-4000:]
    return work_dir / f"iter_{settings.get('steps', STEPS)}.pth"


def read_losses(work_dir: Path) -> dict[tuple[int, int], set[float]]:
    """Return the losses of each process and step: one, unless a repeated step had another."""
    losses: dict[tuple[int, int], set[float]] = {}
    for file in work_dir.glob("probe_*.jsonl"):
        for record in map(json.loads, file.read_text().splitlines()):
            if record["kind"] == "step":
                losses.setdefault((int(file.stem[-1]), record["step"]), set()).add(record["loss"])
    return losses


def assert_same_losses(work_dir: Path, whole: Path) -> None:
    """Every loss of a run, also of steps that it repeated, is that of the uninterrupted run."""
    losses, expected = read_losses(work_dir), read_losses(whole)
    assert losses
    assert losses == {key: expected[key] for key in losses}


def assert_same_checkpoints(path: Path, expected: Path) -> None:
    """Weights, optimizer, schedule and random states are equal in every bit, in every file of a checkpoint."""
    names = [sorted(file.name for file in each.glob("*.pt")) if each.is_dir() else ["."] for each in (path, expected)]
    assert names[0] == names[1] != []
    tensors = 0
    for name in names[0]:
        ours, theirs = (_content(each / name if name != "." else each) for each in (path, expected))
        found, differ = _compare(ours, theirs, name)
        assert not differ
        tensors += found
    assert tensors > 50


def _content(file: Path) -> dict[str, Any]:
    content = torch.load(file, weights_only=False)
    hub = content.pop("message_hub", {"runtime_info": {}})["runtime_info"]
    meta = content.pop("meta", {})
    facts = {"iter": meta.get("iter"), "seed": meta.get("seed"), "launch": meta.get("launch")}
    return {**content, **facts, "random_states": hub.get("random_states")}


def _compare(ours: Any, theirs: Any, place: str) -> tuple[int, list[str]]:
    """Return the number of equal tensors, and the places that differ."""
    if type(ours) is not type(theirs):
        return 0, [place]
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return int(same), [] if same else [place]
    if isinstance(ours, np.ndarray):
        return 0, [] if np.array_equal(ours, theirs) else [place]
    if hasattr(ours, "__dict__") and not isinstance(ours, (dict, type)):
        ours, theirs = vars(ours), vars(theirs)
    if isinstance(ours, (list, tuple)):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if not isinstance(ours, dict):
        return 0, [] if ours == theirs else [place]
    if ours.keys() != theirs.keys():
        return 0, [f"{place}: {ours.keys() ^ theirs.keys()}"]
    inner = [_compare(ours[key], theirs[key], f"{place}/{key}") for key in ours]
    return sum(count for count, _ in inner), [where for _, places in inner for where in places]
