"""Commands run where nothing but this machine can be reached, and a record of what they tried all the same."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# What would hide an attempt: settings by which libraries stay offline, caches, and proxies, which may be on loopback.
_HIDING = ("OFFLINE", "PROXY", "WANDB", "TELEMETRY", "TRACK", "USAGE_STATS", "HF_", "XDG_", "PALLAVA_CACHE")


@dataclass(frozen=True)
class Observed:
    """A command that has ended."""

    output: str
    code: int
    attempts: list[dict[str, Any]]  # foreign hosts that Python code named, refused
    processes: list[list[str]]  # command lines of the Python processes that the guard watched
    lookups: list[str]  # names that any code asked a name server for, in a namespace
    num_unrouted: int | None  # connections and packets of any code without a way out; None without a namespace


@functools.cache
def namespace() -> tuple[tuple[str, ...], str]:
    """The command that starts another one with loopback alone, or none and the reason."""
    if not (unshare := shutil.which("unshare")):
        return (), "unshare is not installed"
    reason = ""
    for command in ((unshare, "--net", "--mount"), (unshare, "--map-root-user", "--net", "--mount")):
        with tempfile.TemporaryDirectory() as folder:
            enter = [*command, sys.executable, HERE / "enter.py", folder, "true"]
            tried = subprocess.run(enter, capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return command, ""
        reason = (tried.stderr.strip().splitlines() or ["unshare failed"])[-1]
    return (), reason


def watch(folder: Path, *command: str | Path, **variables: str) -> Observed:
    """Run a command with the guard in every Python process, in a namespace with loopback alone where one is allowed.

    The command starts in `folder`, where the home is empty, as on a new machine: nothing is cached.
    """
    record, hooks, home = (folder / name for name in ("record", "hooks", "home"))
    for each in (record, hooks, home):
        each.mkdir(parents=True)
    shutil.copy(HERE / "guard.py", hooks / "sitecustomize.py")
    kept = {name: value for name, value in os.environ.items() if not any(part in name.upper() for part in _HIDING)}
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{hooks}:{ROOT}"}
    guard = {"HOME": str(home), "PALLAVA_TEST_RECORD": str(record), "OMP_NUM_THREADS": "1"}
    enter = [*namespace()[0], sys.executable, HERE / "enter.py", record] if namespace()[0] else []
    done = subprocess.run(
        [*enter, *command],
        cwd=folder,
        env={**kept, **paths, **guard, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    attempts, processes = ([json.loads(line) for line in _lines(record / name)] for name in ("attempts", "processes"))
    count = int(*_lines(record / "unrouted")) if enter else None
    return Observed(done.stdout, done.returncode, attempts, processes, _lines(record / "lookups"), count)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
