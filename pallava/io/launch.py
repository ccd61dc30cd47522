"""Launching of trainers on one process or several, as `xtuner train` does it, but with this interpreter.

Half-set variables are refused instead of waiting for a node that never comes. ``python -m pallava.io.launch`` is
torchrun, with its arguments; where a process fails, that process has the last word, and no page of torchrun's.
"""

import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pallava.errors import PallavaError
from pallava.io.processes import num_cores

_BY_SIGNAL = 128  # what shells add to the signal's number


@dataclass(frozen=True)
class Launch:
    """How the processes of a training are started.

    Attributes:
        command: What starts a script or a module: an interpreter, or torchrun.
        processes: Number of processes on all nodes.
        node: Number of this node.
        torchrun: Arguments of torchrun where there are several.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    processes: int = 1
    node: int = 0
    torchrun: tuple[str, ...] = ()


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `xtuner train` does; an empty one counts as unset.

    Raises:
        PallavaError: A variable is not an integer, or several nodes lack an address or a port.
    """
    nodes, processes = _integer(environment, "NNODES", 1), _integer(environment, "NPROC_PER_NODE", 1)
    node, address = _integer(environment, "NODE_RANK", 0), environment.get("ADDR")
    if nodes * processes <= 1:
        return Launch((sys.executable,), build_environment(environment), nodes * processes, node)
    port = _integer(environment, "PORT", 0)
    if nodes > 1 and not (address and port):
        raise PallavaError(
            f"NNODES={nodes} needs ADDR, the first node's address, and PORT, a free port there; set both on every node"
        )
    torchrun = (
        f"--nnodes={nodes}",
        f"--node_rank={node}",
        f"--nproc_per_node={processes}",
        f"--master_addr={address or '127.0.0.1'}",
        f"--master_port={port or free_port()}",
    )
    command = (sys.executable, "-m", "pallava.io.launch", *torchrun)
    return Launch(command, build_environment(environment), nodes * processes, node, torchrun)


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to train in: processes that share a machine's cores share them evenly.

    By itself torchrun would give each process a single thread.
    """
    processes = _integer(environment, "NPROC_PER_NODE", 1)
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // processes))} if processes > 1 else {}
    return {**threads, **environment}


def build_command(script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the command that trains with xtuner's `tools/train.py`, from the variables that `read_launch` reads.

    Raises:
        PallavaError: A variable is not an integer, or several nodes lack an address or a port.
    """
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True))
    if given.get("--launcher") in ("slurm", "mpi"):  # which start the processes themselves
        return [sys.executable, str(script), *arguments]
    launch = read_launch(environment)
    launcher = ["--launcher", "pytorch"] if launch.processes > 1 else []
    return [*launch.command, str(script), *arguments, *launcher]


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_processes(arguments: Sequence[str]) -> tuple[int, int] | None:
    """Run torchrun to its end, in this process, with arguments such as `Launch.torchrun` and a script's name.

    Returns:
        None, or (rank, exit code) of the first process that failed; a negative code is a signal's.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(list(arguments))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        return rank, failure.exitcode
    return None


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; return the exit code of the first process that failed, 128 plus the number for a signal."""
    failed = run_processes(arguments)
    if failed is None:
        return 0
    rank, code = failed
    if code < 0:
        sys.stderr.write(f"error: process {rank} was ended by signal {-code}\n")
    return code if code > 0 else _BY_SIGNAL - code


def _integer(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not value.isdigit():
        raise PallavaError(f"{name} must be an integer, got {value!r} (unset means {default})")
    return int(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
