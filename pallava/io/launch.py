"""Launching of trainers on one process or several, as `xtuner train` does it, but with this interpreter.

Half-set variables are refused instead of waiting for a node that never comes. ``python -m pallava.io.launch`` is
torchrun, with its arguments; where a process fails, that process has the last word, and no page of torchrun's.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import psutil

from pallava.errors import PallavaError
from pallava.io.processes import num_cores

# A process decides what it does with them; SIGUSR1 does not exist on Windows.
FORWARDED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_TORCHRUNS = "SIGHUP,SIGQUIT"  # end the processes


@dataclass(frozen=True)
class Launch:
    """How the processes of a training are started."""

    command: tuple[str, ...]  # what starts a script or a module: an interpreter, or torchrun
    environment: Mapping[str, str]
    processes: int = 1  # on all nodes
    node: int = 0  # number of this one
    torchrun: tuple[str, ...] = ()  # its arguments where there are several processes


def read_launch(environment: Mapping[str, str], launcher: str | None = None) -> Launch:
    """Read NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `xtuner train` does; an empty one counts as unset.

    The launchers slurm and mpi start the processes themselves. Processes that share a machine's cores share them
    evenly: by itself torchrun would give each a single thread.

    Raises:
        PallavaError: A variable is not an integer, or several nodes lack an address or a port.
    """
    processes = _integer(environment, "NPROC_PER_NODE", 1)
    if processes > 1:
        environment = {"OMP_NUM_THREADS": str(max(1, num_cores() // processes)), **environment}
    if launcher in ("slurm", "mpi"):
        return Launch((sys.executable,), environment)
    nodes, node = _integer(environment, "NNODES", 1), _integer(environment, "NODE_RANK", 0)
    if nodes * processes <= 1:
        return Launch((sys.executable,), environment, nodes * processes, node)
    address, port = environment.get("ADDR"), _integer(environment, "PORT", 0)
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
    return Launch(command, environment, nodes * processes, node, torchrun)


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interface_to(address: str) -> str | None:
    """Return the network interface by which this machine reaches another, or its own address; None if by none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for name, addresses in psutil.net_if_addrs().items():
                if any(own == known.address.partition("%")[0] for known in addresses):
                    return name
    return None


def run_processes(arguments: Sequence[str]) -> tuple[int, int] | None:
    """Run torchrun to its end, in this process, with arguments such as `Launch.torchrun` and a script's name.

    Return rank and exit code of the first process that failed, if one did; a negative code is a signal's.
    """
    for number in FORWARDED:  # first, since these imports take seconds
        signal.signal(number, _forward)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main([f"--signals-to-handle={_TORCHRUNS}", *arguments])
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        return rank, failure.exitcode
    return None


def _forward(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the processes, and wait for what they do with it; torchrun would kill them after 30 s."""
    children = psutil.Process().children()
    if not children:  # none was started yet, and an exception could get lost in an import
        os._exit(128 + number)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; return the exit code of the first process that failed, 128 plus the number for a signal."""
    rank, code = run_processes(arguments) or (0, 0)
    if code < 0:
        sys.stderr.write(f"error: process {rank} was ended by signal {-code}\n")
    return code if code >= 0 else 128 - code


def _integer(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not value.isdecimal() or int(value) < default:
        raise PallavaError(f"{name} must be an integer of at least {default}, got {value!r} (unset means {default})")
    return int(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
