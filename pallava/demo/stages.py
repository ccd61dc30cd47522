"""The steps that run as a user would start them, each in a process of its own: `pallava pretrain`, `train`, `evaluate`.

Each takes the demo's folder, its sizes and a receiver of lines on the progress, replaces what an earlier run left, and
raises a PallavaError with the last lines of its log if it fails.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pallava.demo import PIXEL_MEAN, PIXEL_STD, PLIP_MODEL, DemoSettings, Progress
from pallava.demo.exam import MAX_NEW_TOKENS
from pallava.errors import PallavaError
from pallava.io.files import write_json
from pallava.io.processes import num_cores, run_child

_ITERATION = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?loss: ([\d.]+|nan)")
_BATCH = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) .* Loss: ([\d.]+|nan)")
_ANSWERED = re.compile(r"(\w+): .*?(\d+)/(\d+) \[")
_MAX_THREADS = 4  # matrices as small as PLIP's here have no work for more


def pretrain_plip(folder: Path, settings: DemoSettings, progress: Progress) -> None:
    """Train the encoder on the views.

    The text tower is locked: with random weights it would map captions that the encoder cannot tell apart yet to one
    point, where neither side learns to tell them apart any more.
    """
    data, description = folder / "data", folder / "data" / "plip_model.json"
    write_json(description, PLIP_MODEL)
    command = ["pretrain", data / "views.json", folder / "plip", "--image-folder", data / "views"]
    command += ["--model-name", description, "--", "--lock-text", "--seed", settings.seed]
    command += ["--epochs", settings.plip_epochs, "--batch-size", settings.plip_batch, "--lr", settings.plip_lr]
    command += ["--wd", 0.05, "--grad-clip-norm", 1.0, "--image-mean", *PIXEL_MEAN, "--image-std", *PIXEL_STD]
    # Views are cut already, and overviews squashed.
    command += ["--aug-cfg", "scale=(1.0,1.0)", "--image-resize-mode", "squash"]
    command += ["--workers", 0, "--log-every-n-steps", 10]
    environment = _environment(1)
    environment["OMP_NUM_THREADS"] = str(min(_MAX_THREADS, int(environment["OMP_NUM_THREADS"])))

    def describe(epoch: str, seen: str, size: str, loss: str) -> str:
        return f"epoch {int(epoch) + 1} of {settings.plip_epochs}, {seen} of {size} views, loss {loss}"

    on_line, done = _follow(_BATCH, describe, progress), folder / "plip" / "encoder" / "config.json"
    _run(command, environment, on_line, log=folder / "logs" / "plip.log", done=done)


def train_stage(
    config: str, folder: Path, settings: DemoSettings, progress: Progress, processes: int | None = None
) -> None:
    """Train a stage under DeepSpeed's ZeRO-2, in the work directory `folder`, with the processes of the settings.

    Through a language model two processes use two cores better than one with two threads.
    """
    command = ["train", config, "--work-dir", folder, "--deepspeed", "deepspeed_zero2", "--seed", settings.seed]
    options = settings.training_options + ("model.llm.torch_dtype=bfloat16",) * computes_in_bf16()
    command += ["--cfg-options", *options] if options else []
    on_line = _follow(_ITERATION, "step {} of {}, loss {}".format, progress)
    log = folder.parent / "logs" / f"{folder.name}.log"
    _run(command, _environment(processes or settings.processes), on_line, log=log, done=folder / "last_checkpoint")


def evaluate_model(folder: Path, settings: DemoSettings, progress: Progress) -> None:
    """Ask the model all held-out questions, with their own images and with shuffled ones."""
    data, out = folder / "data", folder / "evaluation"
    command = ["evaluate", folder / "model", "custom", "--data", data / "questions.jsonl", "--out", out]
    command += ["--image-folder", data / "images", "--training", data / "instruction_tuning.jsonl"]
    command += ["--batch-size", settings.eval_batch, "--max-new-tokens", MAX_NEW_TOKENS, "--seed", settings.seed]
    on_line = _follow(_ANSWERED, "{}: {} of {}".format, progress)
    _run(command, _environment(1), on_line, log=folder / "logs" / "questions.log", done=out / "results.json")


def computes_in_bf16() -> bool:
    """Return whether this processor has units for bf16 matrices; others are slower than in float32, AVX512-BF16 too."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def plip_losses(log: Path) -> list[tuple[float, float]]:
    """Read the views seen and the loss on a batch from the log of `pretrain_plip`."""
    batches = _BATCH.findall(log.read_text(encoding="utf-8", errors="replace"))
    return [(float(int(epoch) * int(size) + int(seen)), float(loss)) for epoch, seen, size, loss in batches]


def read_losses(work_dir: Path) -> list[tuple[float, float]]:
    """Read steps and losses from the newest run of a stage."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    records = (
        [json.loads(line) for line in logs[-1].read_text(encoding="utf-8").splitlines() if line.strip()] if logs else []
    )
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def _environment(processes: int) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // processes))}
    environment = threads | dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false", "NPROC_PER_NODE": str(processes)}
    for name in ("NNODES", "NODE_RANK", "ADDR", "PORT"):
        environment.pop(name, None)
    return environment


def _follow(pattern: re.Pattern[str], describe: Callable[..., str], progress: Progress) -> Progress:
    """Return a reader of lines: where one has the pattern, `describe` turns its groups into a line of progress."""

    def read(line: str) -> None:
        if found := pattern.search(line):
            progress(describe(*found.groups()))

    return read


def _run(words: Sequence[object], environment: Mapping[str, str], on_line: Progress, *, log: Path, done: Path) -> None:
    """Run a command of ours, whose last act is to write `done`; the folder below the demo's that has it is replaced."""
    shutil.rmtree(log.parents[1] / done.relative_to(log.parents[1]).parts[0], ignore_errors=True)
    command = [sys.executable, "-m", "pallava", *map(str, words)]
    code = run_child(command, on_line, environment, log=log)
    if code == 128 + signal.SIGTERM:
        sys.exit(code)
    if code != 0 or not done.is_file():
        tail = "\n".join("    " + line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise PallavaError(f"`{' '.join(command)}` failed; {log} ends with:\n{tail}")
