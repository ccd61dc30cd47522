"""How a training is started: one process, several, or several on several nodes, as `xtuner train` does it.

What differs: the interpreter is this one and not the first `python` on the path, the exit code is the trainer's, and
half-set variables are refused instead of waiting for a node that never comes.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pallava.errors import PallavaError


def build_command(script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command that trains, from the launch variables of `xtuner train`.

    Args:
        script: xtuner's `tools/train.py`.
        arguments: What follows `xtuner train`.
        environment: NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT; an empty one counts as unset.

    Raises:
        PallavaError: A variable is no number, or several nodes lack an address or a port.
    """
    if num_processes(environment) == 1 or _launcher(arguments) in ("slurm", "mpi"):
        return [sys.executable, str(script), *arguments]
    return [*python_command(environment), str(script), *arguments, "--launcher", "pytorch"]


def num_processes(environment: Mapping[str, str]) -> int:
    """How many processes the launch variables ask for, on all nodes.

    Raises:
        PallavaError: A variable is no number.
    """
    return _number(environment, "NNODES", 1) * _number(environment, "NPROC_PER_NODE", 1)


def node_rank(environment: Mapping[str, str]) -> int:
    """Number of this node among those that train together.

    Raises:
        PallavaError: The variable is no number.
    """
    return _number(environment, "NODE_RANK", 0)


def python_command(environment: Mapping[str, str]) -> list[str]:
    """This interpreter, or torchrun by it where the launch variables ask for several processes.

    Raises:
        PallavaError: As of `rendezvous`.
    """
    if num_processes(environment) == 1:
        return [sys.executable]
    return [sys.executable, "-m", "pallava.io.torchrun", *rendezvous(environment)]


def rendezvous(environment: Mapping[str, str]) -> list[str]:
    """Torchrun's arguments, from the launch variables.

    Raises:
        PallavaError: A variable is no number, or several nodes lack an address or a port.
    """
    nodes, processes = (_number(environment, name, 1) for name in ("NNODES", "NPROC_PER_NODE"))
    address = environment.get("ADDR") or "127.0.0.1"
    port = _number(environment, "PORT", 0)
    if nodes > 1 and not (environment.get("ADDR") and port):
        raise PallavaError(
            f"NNODES={nodes} needs ADDR, the first node's address, and PORT, a free port there: the same on every node."
        )
    return [
        f"--nnodes={nodes}",
        f"--node_rank={node_rank(environment)}",
        f"--nproc_per_node={processes}",
        f"--master_addr={address}",
        f"--master_port={port or free_port()}",
    ]


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to train in: processes that share a machine's cores share them evenly.

    Unset, torchrun would give each process a single thread.
    """
    processes = _number(environment, "NPROC_PER_NODE", 1)
    shared = {"OMP_NUM_THREADS": str(max(1, _num_cores() // processes))} if processes > 1 else {}
    return {**shared, **environment}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launcher(arguments: Sequence[str]) -> str | None:
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True))
    return given.get("--launcher")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not value.isdigit():
        raise PallavaError(f"{name}={value} is no number: set it to one, or leave it unset for {default}.")
    return int(value)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
