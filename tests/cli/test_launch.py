"""What `pallava train` runs, without running it."""

import sys
from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.io import launch

SCRIPT = Path("train.py")
ALONE = [sys.executable, "train.py", "config.py"]


def command(*arguments, **environment):
    return launch.build_command(SCRIPT, ["config.py", *arguments], environment)


def test_one_process():
    assert command() == command(NNODES="1", NPROC_PER_NODE="", ADDR="") == ALONE


def test_launchers_that_start_the_processes_themselves():
    for launcher in ("slurm", "mpi"):
        assert command("--launcher", launcher, NPROC_PER_NODE="8") == [*ALONE, "--launcher", launcher]


def test_several_processes():
    words = command("--seed", "1", NPROC_PER_NODE="2", ADDR="", PORT="1234")
    assert words[:3] == [sys.executable, "-m", "pallava.io.torchrun"]
    assert words[3:8] == [
        "--nnodes=1",
        "--node_rank=0",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        "--master_port=1234",
    ]
    assert words[8:] == ["train.py", "config.py", "--seed", "1", "--launcher", "pytorch"]


def test_several_nodes():
    words = command(NPROC_PER_NODE="8", NNODES="2", NODE_RANK="1", ADDR="first", PORT="12345")
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=first", "--master_port=12345"} <= set(words)


@pytest.mark.parametrize("missing", ["ADDR", "PORT"])
def test_nodes_that_would_wait_for_ever(missing):
    environment = {"NNODES": "2", "ADDR": "first", "PORT": "12345", missing: ""}
    with pytest.raises(PallavaError, match="NNODES=2 needs ADDR"):
        command(**environment)


def test_a_variable_that_is_no_number():
    with pytest.raises(PallavaError, match="NPROC_PER_NODE=two is no number"):
        command(NPROC_PER_NODE="two")


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(launch, "_num_cores", lambda: 8)
    assert launch.build_environment({"NPROC_PER_NODE": "2"})["OMP_NUM_THREADS"] == "4"
    assert launch.build_environment({"NPROC_PER_NODE": "16"})["OMP_NUM_THREADS"] == "1"
    assert launch.build_environment({"NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in launch.build_environment({})
