"""Under Slurm, jobs do not meet on a port, and a process that sees one card alone takes that one."""

import inspect
import os

import pytest
import torch
from mmengine.dist import utils as dist_utils

from pallava.training import compat
from pallava.training.slurm import _apart, port_of_step

START = inspect.unwrap(dist_utils._init_dist_slurm)  # as mmengine has it


@pytest.fixture
def task(monkeypatch):
    """A task of a job on a node whose processes see some cards; returns what it started its group with."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    started = {}

    def set_device(number):
        if number >= torch.cuda.device_count():
            raise RuntimeError("CUDA error: invalid device ordinal")
        started["card"] = number

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: started.update(backend=backend))

    def start(function, visible, number=5, port=None, **variables):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        names = {"SLURM_PROCID": "13", "SLURM_NTASKS": "16", "SLURM_NODELIST": "n[1-2]", "MASTER_ADDR": "n1"}
        os.environ.update({**names, "SLURM_LOCALID": str(number), "SLURM_JOB_ID": "48213", **variables})
        function("nccl", port=port)
        return started

    return start


def test_a_process_that_sees_one_card_alone(task):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        task(START, visible=1)
    assert task(_apart(START), visible=1) == {"card": 0, "backend": "nccl"}
    assert (os.environ["LOCAL_RANK"], os.environ["RANK"], os.environ["SLURM_LOCALID"]) == ("0", "13", "5")


def test_a_process_that_sees_all_cards_takes_its_own(task):
    assert task(_apart(START), visible=8)["card"] == 5
    assert os.environ["LOCAL_RANK"] == os.environ["SLURM_LOCALID"] == "5"


def test_without_cards_processes_are_numbered_as_before(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    task(_apart(START), visible=0)
    assert os.environ["LOCAL_RANK"] == "5"


def test_mmengine_takes_one_port_for_all_jobs(task):
    task(START, visible=8)
    assert os.environ["MASTER_PORT"] == "29500", "mmengine gives a job its own port: drop port_of_step"


@pytest.mark.parametrize(("given", "port"), [({}, None), ({"MASTER_PORT": "7"}, None), ({}, 7)])
def test_a_job_has_its_port_unless_one_is_given(task, given, port):
    task(_apart(START), visible=8, port=port, SLURM_STEP_ID="2", **given)
    expected = 7 if given or port else port_of_step({"SLURM_JOB_ID": "48213", "SLURM_STEP_ID": "2"})
    assert os.environ["MASTER_PORT"] == str(expected)


def test_jobs_and_steps_that_run_at_once_have_different_ports():
    for jobs, steps in ((range(9920, 10080), range(60)), (range(7000, 17000), range(1))):
        steps_of_jobs = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in jobs for step in steps]
        ports = [port_of_step(step) for step in steps_of_jobs]
        assert len(set(ports)) == len(ports)
    assert 10_000 <= min(ports) <= max(ports) < 20_000
    batch = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967291"}  # Slurm's number for a batch script
    assert 10_000 <= port_of_step(batch) < 20_000
    assert port_of_step({"SLURM_JOB_ID": "7"}) == port_of_step({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    assert port_of_step({}) is None


def test_it_is_applied():
    assert "start_apart_under_slurm" in compat.apply()
    assert START is not dist_utils._init_dist_slurm
