"""Two nodes, and one that is gone: the other ends soon, names it, and both together resume every bit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pallava.io.launch import free_port
from tests.smoke.test_training import ZERO2, environment, losses
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
STEPS, PAUSE = 8, 6  # a checkpoint is written after the fourth
MOST = 60  # seconds until a node has noticed that another is gone
SHIM = """#!/bin/sh
"{torchrun}" "$@"
echo $? > "$EXIT_CODE"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    parts, data = save_parts(folder), save_data(folder)
    return write_config("pallava_domain_alignment", parts, data, folder / "tiny.py", num_steps=STEPS)


def pause(rank: int) -> list[str]:
    """Options by which a process waits in a step, and so the others for it."""
    values = {"type": "tests.tiny.pause.Pause", "iteration": PAUSE, "rank": rank}
    return ["--cfg-options", *(f"default_hooks.pause.{key}={value}" for key, value in values.items())]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        assert process.poll() is None, f"ended before {path.name}"
        time.sleep(0.1)
    time.sleep(1)  # until the others wait in a collective


class Node:
    """A network namespace with a name of its own, which is what a node is to the other."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.name = number, f"pallava{os.getpid()}n{number}"
        self.folder, self.address, self.device = folder, f"10.83.47.{number + 1}", f"veth{number}"
        run("ip", "netns", "add", self.name)

    def start(self, config: Path, work_dir: Path, *arguments: str, command: str = "xtuner") -> subprocess.Popen:
        """Starts a training of two nodes here, as a user would; the exit code of `xtuner` itself is always 0."""
        shim, self.exit_code = self.folder / "bin" / "torchrun", self.folder / f"exit-code-{self.number}"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(SHIM.format(torchrun=Path(sys.executable).with_name("torchrun")))
        shim.chmod(0o755)
        self.exit_code.unlink(missing_ok=True)
        variables = {"NNODES": "2", "NODE_RANK": str(self.number), "ADDR": "10.83.47.1", "PORT": "29500"}
        variables = environment(**variables, NPROC_PER_NODE="1", EXIT_CODE=str(self.exit_code))
        variables["PATH"] = f"{shim.parent}:{variables['PATH']}"
        words = ["unshare", "--uts", "sh", "-c", f'hostname node{self.number}; exec "$@"', "sh"]
        words += [command, "train", str(config), "--work-dir", str(work_dir), *ZERO2, "--seed", "1", *arguments]
        self.log = self.folder / f"node{self.number}.log"
        with self.log.open("w") as log:
            words = ["ip", "netns", "exec", self.name, *words]
            return subprocess.Popen(words, env=variables, cwd=config.parent, stdout=log, stderr=log)

    def kill(self) -> None:
        """Ends every process here at once."""
        for pid in run("ip", "netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)

    def connect(self, state: str) -> None:
        run("ip", "-n", self.name, "link", "set", self.device, state)

    def remove(self) -> None:
        self.kill()
        run("ip", "netns", "del", self.name)


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[list[Node]]:
    folder, nodes = tmp_path_factory.mktemp("logs"), []
    try:
        for number in (0, 1):
            nodes.append(Node(number, folder))
        first, second = nodes
        link = ("link", "add", first.device, "type", "veth", "peer", "name", second.device)
        run("ip", "-n", first.name, *link, "netns", second.name)
        for node in nodes:
            run("ip", "-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.device)
            node.connect("up")
            run("ip", "-n", node.name, "link", "set", "lo", "up")
            run("ip", "netns", "exec", node.name, "unshare", "--uts", "hostname", "node")
    except (OSError, subprocess.CalledProcessError) as error:
        for node in nodes:
            node.remove()
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
    yield nodes
    for node in nodes:
        node.remove()


def train_on(nodes: list[Node], config: Path, work_dir: Path, *arguments: str) -> None:
    processes = [node.start(config, work_dir, *arguments) for node in nodes]
    for node, process in zip(nodes, processes, strict=True):
        process.wait(timeout=150)
        assert node.exit_code.read_text() == "0\n", node.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def whole(config, nodes, tmp_path_factory) -> Path:
    """A training of two nodes that nothing interrupts."""
    work_dir = tmp_path_factory.mktemp("whole") / "run"
    train_on(nodes, config, work_dir)
    assert {len(losses(work_dir, rank)) for rank in (0, 1)} == {STEPS}
    return work_dir


def check_end(node: Node, process: subprocess.Popen, victim: int, command: str) -> None:
    """The survivor ends in time and not with 0, and its last word is who is gone."""
    code = process.wait(timeout=MOST)
    output = node.log.read_text()
    assert (int(node.exit_code.read_text()) if command == "xtuner" else code) == 1, output[-3000:]
    assert "gloo/transport" not in output, output[-3000:]
    words = f"error: process {victim} (host node{victim}, pid "
    assert words in (output if command == "xtuner" else output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how", "command"),
    [(1, "killed", "xtuner"), (1, "unreachable", "xtuner"), (1, "killed", "pallava"), (0, "killed", "pallava")],
)
def test_a_node_is_gone(config, nodes, whole, tmp_path, victim, how, command):
    work_dir = tmp_path / "run"
    processes = [node.start(config, work_dir, *pause(victim), command=command) for node in nodes]
    wait_for(work_dir / "paused", processes[victim])
    if how == "killed":
        nodes[victim].kill()
    else:  # like a machine without power: nothing comes from it, not even that a connection is closed
        nodes[victim].connect("down")
    check_end(nodes[1 - victim], processes[1 - victim], victim, command)
    nodes[victim].kill()
    nodes[victim].connect("up")
    for rank in (0, 1):
        (work_dir / f"probe_{rank}.jsonl").unlink()
    train_on(nodes, config, work_dir, "--resume", "auto")
    for rank in (0, 1):
        expected = {step: loss for step, loss in losses(whole, rank).items() if step > STEPS // 2}
        assert losses(work_dir, rank) == expected


def test_a_process_is_killed(config, tmp_path):
    """Two nodes as two launches on this machine, which need no namespaces."""
    variables = {"NNODES": "2", "ADDR": "127.0.0.1", "PORT": str(free_port()), "NPROC_PER_NODE": "1"}
    words = [str(Path(sys.executable).with_name("pallava")), "train", str(config), "--work-dir", str(tmp_path), *ZERO2]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    first, second = (
        subprocess.Popen([*words, *pause(1)], env=environment(**variables, NODE_RANK=str(rank)), **output)
        for rank in (0, 1)
    )
    wait_for(tmp_path / "paused", second)
    tree = [*psutil.Process(second.pid).children(recursive=True), second]
    for process in tree:
        process.kill()
    text, _ = first.communicate(timeout=MOST)
    assert first.returncode == 1
    assert "Traceback" not in text
    assert text.strip().splitlines()[-1] == f"error: process 1 (host {os.uname().nodename}, pid {tree[-2].pid}) is gone"
