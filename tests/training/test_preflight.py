"""What this machine or DeepSpeed cannot do is refused by name, before a weight is read."""

import json

import pytest
import torch
from mmengine.runner import FlexibleRunner, Runner

from pallava.errors import PallavaError
from pallava.training import preflight
from pallava.training.preflight import check_cards, check_stage

NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"
BROKEN = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before? Error 804: forward compatib"
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without a GPU, to which a test adds one that torch does not see, for the reason that it gives."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(preflight, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def add(variables=None, device=None, reason=NO_DRIVER):
        def init():
            raise RuntimeError(reason)

        monkeypatch.setattr(torch.cuda, "init", init)
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        if device:
            (tmp_path / device).touch()

    return add


@pytest.mark.parametrize(
    ("variables", "device", "fact"),
    [
        ({}, "nvidia3", "nvidia3'"),
        ({"SLURM_JOB_GPUS": "0"}, None, "SLURM_JOB_GPUS=0"),
        ({"SLURM_STEP_GPUS": "0,1"}, None, "SLURM_STEP_GPUS=0,1"),
        ({"SLURM_GPUS_ON_NODE": "8"}, None, "SLURM_GPUS_ON_NODE=8"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None, "CUDA_VISIBLE_DEVICES=0,1"),
    ],
)
@pytest.mark.parametrize(
    ("reason", "kept"),
    [(NO_DRIVER, "no NVIDIA driver on your system;"), (OLD_DRIVER, "version 11040)"), (BROKEN, ": Error 804: forward")],
)
def test_a_card_that_torch_does_not_see(machine, variables, device, fact, reason, kept):
    machine(variables, device, reason)
    with pytest.raises(PallavaError) as refused:
        check_cards()
    for part in (fact, kept, "CUDA_VISIBLE_DEVICES=''"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_GPUS": ""},
    ],
)
def test_the_cpu_may_be_asked_for(machine, variables):
    machine(variables, "nvidia0")
    check_cards()


@pytest.mark.parametrize("variables", [{}, {"SLURM_GPUS_ON_NODE": "0"}])
def test_a_machine_without_a_card(machine, variables):
    machine(variables, "nvidiactl")
    check_cards()


@pytest.fixture
def cards(monkeypatch):
    def have(architectures, *capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)

    return have


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 3), (12, 0), (12, 1)])
def test_cards_with_kernels(cards, capability):
    cards(WHEEL, (9, 0), capability)
    check_cards()


@pytest.mark.parametrize(
    ("architectures", "capability", "fact"),
    [
        (WHEEL, (7, 0), "7.0"),
        (WHEEL, (11, 0), "11.0"),
        (["sm_86"], (8, 0), "8.0"),
        (["sm_90", "compute_90"], (8, 9), "8.9"),
    ],
)
def test_a_card_without_kernels(cards, architectures, capability, fact):
    cards(architectures, (9, 0) if "sm_90" in architectures else (8, 6), capability)
    with pytest.raises(PallavaError) as refused:
        check_cards()
    for part in ("GPU 1", fact, *architectures):
        assert part in str(refused.value)


def test_code_that_is_compiled_when_it_is_loaded(cards):
    cards(["sm_90a", "compute_90"], (9, 0), (12, 1))
    check_cards()
    cards([], (7, 0))  # an unusual build: nothing is known
    check_cards()


@pytest.mark.parametrize("form", ["config", "file", "strategy"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_3(tmp_path, form, stage):
    zero = {"zero_optimization": {"stage": stage}}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    strategy = {"file": {"config": str(tmp_path / "zero.json")}, "strategy": zero}.get(form, {"config": zero})
    config = {"strategy": {"type": "DeepSpeedStrategy", **strategy}}
    if stage < 3:
        check_stage(config)
        return
    with pytest.raises(PallavaError, match="3.*deepspeed_zero1.*deepspeed_zero2"):
        check_stage(config)


@pytest.mark.parametrize("runner", [Runner, FlexibleRunner])
def test_it_is_refused_before_anything_is_built(runner, tmp_path):
    config = {"strategy": {"config": {"zero_optimization": {"stage": 3}}}, "work_dir": str(tmp_path)}
    with pytest.raises(PallavaError, match="deepspeed_zero2"):
        runner.from_cfg(config)
