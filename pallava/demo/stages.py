"""The two trainings as a user would start them: ``xtuner train`` in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pallava.config_files import find_config
from pallava.errors import PallavaError

FAST_PRECISION = ("--cfg-options", "model.llm.torch_dtype=bfloat16")
"""Options that keep the frozen language model in bf16, for more steps in the same time where `computes_in_bf16`."""

_ITERATION = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?loss: ([\d.]+|nan)")


def train_stage(
    config: str,
    folder: Path,
    *,
    processes: int,
    seed: int,
    log: Path,
    progress: Callable[[str], None],
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
    environment = _environment(processes)
    with log.open("w") as out:
        code = _run(command, environment, out.write, progress)
    if code != 0 or not (folder / "last_checkpoint").is_file():  # xtuner ends with 0 whatever happens
        raise PallavaError(f"`{' '.join(command)}` failed; {log} ends with:\n{_tail(log)}")


def checkpoint_of(folder: Path) -> Path:
    """The last checkpoint of a finished run."""
    path = Path((folder / "last_checkpoint").read_text().strip())
    return folder / path.name


def computes_in_bf16() -> bool:
    """Whether this processor multiplies in bf16; others emulate it, slower than float32."""
    import torch

    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


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
    command: list[str],
    environment: dict[str, str],
    write: Callable[[str], object],
    progress: Callable[[str], None],
) -> int:
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
        for line in process.stdout:
            write(line)
            if found := _ITERATION.search(line):
                progress("step {} of {}, loss {}".format(*found.groups()))
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-lines:])
