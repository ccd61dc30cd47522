"""What a training's launch variables start, and what torchrun says of a process that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.cli import main
from pallava.config_files import find_config, train_script
from pallava.errors import PallavaError
from pallava.io import launch

NAME = "pallava_domain_alignment"
TRAIN = [str(train_script()), str(find_config(NAME))]
ALONE = [sys.executable, *TRAIN]
FAILS = """
import os, signal, sys
if os.environ["RANK"] == "1":
    {how}
"""


@pytest.fixture
def command(monkeypatch):
    """What `pallava train` becomes with arguments and launch variables."""

    def train(*arguments, **environment):
        started = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "execve", lambda _, words, __: started.extend(words))
            for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "ADDR", "PORT"):
                patch.setenv(name, environment.get(name, ""))
            main(["train", NAME, *arguments])
        return started

    return train


def test_one_process(command):
    assert command() == command(NNODES="1", NPROC_PER_NODE="", ADDR="") == ALONE


def test_launchers_that_start_the_processes_themselves(command):
    for launcher in ("slurm", "mpi"):
        assert command("--launcher", launcher, NPROC_PER_NODE="8") == [*ALONE, "--launcher", launcher]


def test_several_processes(command):
    words = command("--seed", "1", NPROC_PER_NODE="2", ADDR="", PORT="1234")
    assert words[:3] == [sys.executable, "-m", "pallava.io.launch"]
    assert words[3:8] == [
        "--nnodes=1",
        "--node_rank=0",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        "--master_port=1234",
    ]
    assert words[8:] == [*TRAIN, "--seed", "1", "--launcher", "pytorch"]


def test_several_nodes(command):
    words = command(NPROC_PER_NODE="8", NNODES="2", NODE_RANK="1", ADDR="first", PORT="12345")
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=first", "--master_port=12345"} <= set(words)


@pytest.mark.parametrize("missing", ["ADDR", "PORT"])
def test_nodes_that_would_wait_for_ever(missing):
    environment = {"NNODES": "2", "ADDR": "first", "PORT": "12345", missing: ""}
    with pytest.raises(PallavaError, match="NNODES=2 needs ADDR"):
        launch.read_launch(environment)


def test_a_variable_that_is_not_an_integer():
    with pytest.raises(PallavaError, match="NPROC_PER_NODE .* 'two'"):
        launch.read_launch({"NPROC_PER_NODE": "two"})


@pytest.mark.parametrize("name", ["NPROC_PER_NODE", "NNODES"])
def test_a_number_of_processes_or_nodes_below_one(name):
    with pytest.raises(PallavaError, match=f"{name} .* '0'"):
        launch.read_launch({name: "0"})


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(launch, "num_cores", lambda: 8)

    def threads(**environment: str) -> str | None:
        return launch.read_launch(environment).environment.get("OMP_NUM_THREADS")

    assert threads(NPROC_PER_NODE="2") == "4"
    assert threads(NPROC_PER_NODE="16") == "1"
    assert threads(NPROC_PER_NODE="2", OMP_NUM_THREADS="3") == "3"
    assert threads() is None


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("sys.stderr.write('error: no such file\\n'); sys.exit(3)", 3, "error: no such file"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: process 1 was ended by signal 9"),
        ("pass", 0, None),
    ],
)
def test_the_process_that_fails_has_the_last_word(how: str, code: int, last: str | None, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILS.format(how=how))
    words = ["--nnodes=1", "--nproc_per_node=2", "--master_addr=127.0.0.1", "--master_port=0", str(script)]
    done = subprocess.run(
        [sys.executable, "-m", "pallava.io.launch", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (done.stderr.strip().splitlines() or [None])[-1] == last


def test_a_signal_before_any_process_was_started():
    """It would be lost, and the training would begin."""
    if not (pid := os.fork()):
        launch.psutil.Process.children = lambda self: []
        launch._forward(15, None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
