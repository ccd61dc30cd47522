"""Trainings and evaluation as a user would start them, in processes of their own: ``pallava pretrain``, ``xtuner
train``, ``pallava evaluate``.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pallava.config_files import find_config
from pallava.demo import PIXEL_MEAN, PIXEL_STD, PLIP_MODEL, DemoSettings
from pallava.demo.exam import MAX_NEW_TOKENS
from pallava.errors import PallavaError
from pallava.io.files import write_json
from pallava.io.processes import num_cores, run_child

Progress = Callable[[str], None]

FAST_PRECISION = ("--cfg-options", "model.llm.torch_dtype=bfloat16")
"""Options that keep the frozen language model in bf16, which is faster if `computes_in_bf16`."""

_ITERATION = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?loss: ([\d.]+|nan)")
_BATCH = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) .* Loss: ([\d.]+|nan)")
_ANSWERED = re.compile(r"(\w+): .*?(\d+)/(\d+) \[")
_MAX_THREADS = 4  # matrices as small as PLIP's here have no work for more


def pretrain_plip(data: Path, folder: Path, settings: DemoSettings, *, log: Path, progress: Progress) -> None:
    """Run ``pallava pretrain`` on the views.

    The text tower is locked: with random weights it would map captions that the encoder cannot tell apart yet to one
    point, where neither side learns to tell them apart any more.

    Args:
        data: Folder with ``views.json`` and ``views``.
        folder: Folder of the run; an old one is removed.
        settings: Sizes and seed.
        log: File for the output of the run.
        progress: Receives epoch, step and loss.

    Raises:
        PallavaError: The run fails; with the last lines of its log.
    """
    description = data / "plip_model.json"
    write_json(description, PLIP_MODEL)
    command = [sys.executable, "-m", "pallava", "pretrain", str(data / "views.json"), str(folder)]
    command += ["--image-folder", str(data / "views"), "--model-name", str(description), "--", "--lock-text"]
    command += ["--epochs", str(settings.plip_epochs), "--batch-size", str(settings.plip_batch)]
    command += ["--lr", str(settings.plip_lr), "--wd", "0.05", "--grad-clip-norm", "1.0", "--seed", str(settings.seed)]
    command += ["--image-mean", *map(str, PIXEL_MEAN), "--image-std", *map(str, PIXEL_STD)]
    # Views are cut already, and overviews squashed.
    command += ["--aug-cfg", "scale=(1.0,1.0)", "--image-resize-mode", "squash"]
    command += ["--workers", "0", "--log-every-n-steps", "10"]
    environment = _environment(1)
    environment["OMP_NUM_THREADS"] = str(min(_MAX_THREADS, int(environment["OMP_NUM_THREADS"])))

    def report(line: str) -> None:
        if found := _BATCH.search(line):
            epoch, seen, size, loss = found.groups()
            progress(f"epoch {int(epoch) + 1} of {settings.plip_epochs}, {seen} of {size} views, loss {loss}")

    _run(command, environment, log, report, folder=folder, done="encoder/config.json")


def plip_losses(log: Path) -> list[tuple[float, float]]:
    """Read the views seen and the loss on a batch from the log of `pretrain_plip`."""
    batches = (match.groups() for match in map(_BATCH.search, log.read_text(errors="replace").splitlines()) if match)
    return [(float(int(epoch) * int(size) + int(seen)), float(loss)) for epoch, seen, size, loss in batches]


def train_stage(config: str, folder: Path, settings: DemoSettings, *, log: Path, progress: Progress) -> None:
    """Run ``xtuner train`` under DeepSpeed's ZeRO-2.

    Args:
        config: Name of one of our configs, whose paths are relative to the working directory.
        folder: Work directory of the run; an old one is removed.
        settings: Number of processes and seed.
        log: File for the output of the run.
        progress: Receives iteration and loss.

    Raises:
        PallavaError: The run fails; with the last lines of its log.
    """
    command = [str(_find_command("xtuner")), "train", str(find_config(config)), "--work-dir", str(folder)]
    command += ["--deepspeed", "deepspeed_zero2", "--seed", str(settings.seed)]
    command += FAST_PRECISION if computes_in_bf16() else ()

    def report(line: str) -> None:
        if found := _ITERATION.search(line):
            progress("step {} of {}, loss {}".format(*found.groups()))

    _run(command, _environment(settings.processes), log, report, folder=folder, done="last_checkpoint")


def evaluate_model(
    model: Path, data: Path, folder: Path, settings: DemoSettings, *, log: Path, progress: Progress
) -> None:
    """Run ``pallava evaluate`` on the held-out questions.

    Args:
        model: The model's folder.
        data: Folder with ``questions.jsonl``, ``images`` and ``instruction_tuning.jsonl``.
        folder: Folder for the results; an old one is removed.
        settings: Questions at once, and the seed.
        log: File for the output of the run.
        progress: Receives the number of answers.

    Raises:
        PallavaError: The run fails; with the last lines of its log.
    """
    command = [sys.executable, "-m", "pallava", "evaluate", str(model), "custom"]
    command += ["--data", str(data / "questions.jsonl"), "--image-folder", str(data / "images"), "--out", str(folder)]
    command += ["--training", str(data / "instruction_tuning.jsonl"), "--batch-size", str(settings.eval_batch)]
    command += ["--max-new-tokens", str(MAX_NEW_TOKENS), "--seed", str(settings.seed)]

    def report(line: str) -> None:
        if found := _ANSWERED.search(line):
            progress("{}: {} of {}".format(*found.groups()))

    _run(command, _environment(1), log, report, folder=folder, done="results.json")


def checkpoint_of(folder: Path) -> Path:
    """Return the last checkpoint of a finished run."""
    path = Path((folder / "last_checkpoint").read_text().strip())
    return folder / path.name


def computes_in_bf16() -> bool:
    """Return whether this processor has units for bf16 matrices; others are slower than in float32, AVX512-BF16 too."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def read_losses(work_dir: Path) -> list[tuple[float, float]]:
    """Read steps and losses from the newest run of a stage."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    records = [json.loads(line) for line in logs[-1].read_text().splitlines() if line.strip()] if logs else []
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def _find_command(name: str) -> Path:
    """Return a command of this very environment, whatever PATH has."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        raise PallavaError(f"the command `{name}` is not installed beside '{sys.executable}'")
    return Path(found)


def _environment(processes: int) -> dict[str, str]:
    environment = dict(os.environ)
    path = [str(Path(sys.executable).parent), environment.get("PATH", "")]
    environment["PATH"] = os.pathsep.join(path)  # xtuner starts whatever `python` and `torchrun` come first
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // processes)))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["NPROC_PER_NODE"] = str(processes)
    for name in ("NNODES", "NODE_RANK", "ADDR", "PORT"):
        environment.pop(name, None)
    return environment


def _run(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    on_line: Callable[[str], None],
    *,
    folder: Path,
    done: str,
) -> None:
    """Run a command that must write `done` into a new folder: xtuner's exit code is 0 even if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    code = run_child(command, on_line, environment, log=log)
    if code == 128 + signal.SIGTERM:
        sys.exit(code)
    if code != 0 or not (folder / done).is_file():
        tail = "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-25:])
        raise PallavaError(f"`{' '.join(command)}` failed; {log} ends with:\n{tail}")
