"""Trainings and exam as a user would start them, in processes of their own: ``pallava pretrain``, ``xtuner train``,
``pallava evaluate``.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pallava.config_files import find_config
from pallava.demo.exam import MAX_NEW_TOKENS
from pallava.demo.settings import PIXEL_MEAN, PIXEL_STD, PLIP_MODEL, DemoSettings
from pallava.errors import PallavaError

Progress = Callable[[str], None]

FAST_PRECISION = ("--cfg-options", "model.llm.torch_dtype=bfloat16")
"""Options that keep the frozen language model in bf16, for more steps in the same time where `computes_in_bf16`."""

_ITERATION = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?loss: ([\d.]+|nan)")
_BATCH = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) .* Loss: ([\d.]+|nan)")
_ANSWERED = re.compile(r"(\w+): .*?(\d+)/(\d+) \[")
_MAX_THREADS = 4  # matrices as small as PLIP's here have no work for more


def pretrain_plip(data: Path, folder: Path, settings: DemoSettings, *, log: Path, progress: Progress) -> None:
    """Runs ``pallava pretrain`` on the views to the end.

    The text tower is locked: one that starts from random weights would map captions that the encoder cannot tell apart
    yet to one point, where neither side learns to tell them apart any more.

    Args:
        data: Folder with ``views.json`` and ``views``.
        folder: Of the run; emptied before.
        settings: Sizes, and the seed.
        log: Gets all that the run prints.
        progress: Gets epoch, step and loss as they come.

    Raises:
        PallavaError: If the run fails; with the last lines of its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    description = data / "plip_model.json"
    description.write_text(json.dumps(PLIP_MODEL, indent=2) + "\n")
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

    def tell(line: str) -> None:
        if found := _BATCH.search(line):
            epoch, seen, size, loss = found.groups()
            progress(f"epoch {int(epoch) + 1} of {settings.plip_epochs}, {seen} of {size} views, loss {loss}")

    _run(command, environment, log, tell, done=folder / "encoder" / "config.json")


def plip_losses(log: Path) -> list[tuple[float, float]]:
    """Views seen and the loss on a batch, as a run of `pretrain_plip` logged them."""
    batches = (match.groups() for match in map(_BATCH.search, log.read_text(errors="replace").splitlines()) if match)
    return [(float(int(epoch) * int(size) + int(seen)), float(loss)) for epoch, seen, size, loss in batches]


def train_stage(
    config: str,
    folder: Path,
    *,
    processes: int,
    seed: int,
    log: Path,
    progress: Progress,
    options: tuple[str, ...] = (),
) -> None:
    """Runs ``xtuner train`` under DeepSpeed's ZeRO-2 to the end.

    Args:
        config: Name of one of our configs; its paths are relative to the working directory.
        folder: Work directory of the run; emptied before.
        processes: Started by NPROC_PER_NODE where there are several.
        seed: Of the run.
        log: Gets all that the run prints.
        progress: Gets iteration and loss as they come.
        options: Further arguments.

    Raises:
        PallavaError: If the run fails; with the last lines of its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(_binary("xtuner")), "train", str(find_config(config)), "--work-dir", str(folder)]
    command += ["--deepspeed", "deepspeed_zero2", "--seed", str(seed), *options]

    def tell(line: str) -> None:
        if found := _ITERATION.search(line):
            progress("step {} of {}, loss {}".format(*found.groups()))

    _run(command, _environment(processes), log, tell, done=folder / "last_checkpoint")


def evaluate_model(
    model: Path, data: Path, folder: Path, settings: DemoSettings, *, log: Path, progress: Progress
) -> None:
    """Runs ``pallava evaluate`` on the held-out questions to the end.

    Args:
        model: The model's folder.
        data: Folder with ``questions.jsonl``, ``images`` and ``instruction_tuning.jsonl``.
        folder: For the results; emptied before.
        settings: Questions at once, and the seed.
        log: Gets all that the run prints.
        progress: Gets the number of answers as they come.

    Raises:
        PallavaError: If the run fails; with the last lines of its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pallava", "evaluate", str(model), "custom"]
    command += ["--data", str(data / "questions.jsonl"), "--image-folder", str(data / "images"), "--out", str(folder)]
    command += ["--training", str(data / "instruction_tuning.jsonl"), "--batch-size", str(settings.eval_batch)]
    command += ["--max-new-tokens", str(MAX_NEW_TOKENS), "--seed", str(settings.seed)]

    def tell(line: str) -> None:
        if found := _ANSWERED.search(line):
            progress("{}: {} of {}".format(*found.groups()))

    _run(command, _environment(1), log, tell, done=folder / "results.json")


def checkpoint_of(folder: Path) -> Path:
    """The last checkpoint of a finished run."""
    path = Path((folder / "last_checkpoint").read_text().strip())
    return folder / path.name


def computes_in_bf16() -> bool:
    """Whether this processor has units for matrices in bf16; others take longer than in float32, AVX512-BF16 too."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _binary(name: str) -> Path:
    """A command of this very environment, whatever the path says."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        raise PallavaError(f"the command `{name}` is not installed beside {sys.executable}")
    return Path(found)


def _environment(processes: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = dict(os.environ)
    path = [str(Path(sys.executable).parent), environment.get("PATH", "")]
    environment["PATH"] = os.pathsep.join(path)  # xtuner starts whatever `python` and `torchrun` come first
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["NPROC_PER_NODE"] = str(processes)
    for name in ("NNODES", "NODE_RANK", "ADDR", "PORT"):
        environment.pop(name, None)
    return environment


def _run(
    command: list[str], environment: dict[str, str], log: Path, on_line: Callable[[str], None], *, done: Path
) -> None:
    """Runs a command to the end; `done` is what must stand then, since xtuner ends with 0 whatever happens."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, so that all its processes can be ended
    )
    assert process.stdout is not None
    try:
        with log.open("w", buffering=1) as out:  # to be followed while it grows
            for line in process.stdout:
                out.write(line)
                on_line(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    if code != 0 or not done.is_file():
        raise PallavaError(f"`{' '.join(command)}` failed; {log} ends with:\n{_tail(log)}")


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-lines:])
