"""What this machine or DeepSpeed cannot do, or would round, is refused by name, before a weight is read."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from xtuner.registry import BUILDER

from pallava.config_files import config_names, find_config
from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.training import preflight
from pallava.training.preflight import check_cards, check_precision, check_stage
from tests.tiny.training import save_parts

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
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages(tmp_path, form, stage):
    zero = {"zero_optimization": {"stage": stage}}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    strategy = {"file": {"config": str(tmp_path / "zero.json")}, "strategy": zero}.get(form, {"config": zero})
    config = {"strategy": {"type": "DeepSpeedStrategy", **strategy}}
    if stage in (1, 2):
        check_stage(config)
        return
    with pytest.raises(PallavaError, match=f"{stage}.*deepspeed_zero1.*deepspeed_zero2"):
        check_stage(config)


@pytest.mark.parametrize("runner", [Runner, FlexibleRunner])
def test_it_is_refused_before_anything_is_built(runner, tmp_path):
    config = {"strategy": {"config": {"zero_optimization": {"stage": 3}}}, "work_dir": str(tmp_path)}
    with pytest.raises(PallavaError, match="deepspeed_zero2"):
        runner.from_cfg(config)


@pytest.fixture
def trained(monkeypatch):
    """Check stage 1's config, changed by its full keys, on a device that computes in bf16, under DeepSpeed or not."""

    def check(name, bf16=None, fp16=False, dtype=torch.bfloat16, **options):
        monkeypatch.setattr(preflight, "device_dtype", lambda: dtype)
        config = Config.fromfile(find_config(name)) if name in config_names() else Config.fromfile(name)
        config.merge_from_dict({key.replace("__", "."): value for key, value in options.items()})
        if bf16 is not None:  # what xtuner leaves of a config
            settings = {"bf16": {"enabled": bf16}, "fp16": {"enabled": fp16}}
            config.strategy = {"type": "DeepSpeedStrategy", "config": settings}
            config.optim_wrapper = {"type": "DeepSpeedOptimWrapper", "optimizer": config.optim_wrapper.optimizer}
        check_precision(config)

    return check


STAGE = "pallava_domain_alignment"


@pytest.fixture
def written(tmp_path):
    """The config with a precision in PART 1, as a copy or as a training dumps it."""

    def write(form, precision):
        copy = tmp_path / "own.py"
        copy.write_text(find_config(STAGE).read_text().replace('precision = "auto"', f'precision = "{precision}"'))
        if form == "dumped":
            Config.fromfile(copy).dump(tmp_path / "dumped.py")
        return str(tmp_path / f"{form}.py")

    return write


@pytest.mark.parametrize("form", ["own", "dumped"])
@pytest.mark.parametrize("precision", ["auto", "float32", "float16", "bfloat16"])
def test_precision_under_deepspeed(trained, written, form, precision):
    path = written(form, precision)
    enabled = {"bfloat16": {"bf16": True}, "float16": {"bf16": False, "fp16": True}, "float32": {"bf16": False}}
    for computed, settings in enabled.items():
        if precision == computed or (precision == "auto" and computed == "bfloat16"):
            trained(path, **settings)
            continue
        with pytest.raises(PallavaError, match=computed):
            trained(path, **settings)


@pytest.mark.parametrize("form", ["own", "dumped"])
@pytest.mark.parametrize("precision", ["auto", "float32", "float16", "bfloat16"])
def test_precision_reaches_the_language_model(trained, written, tmp_path, form, precision):
    path = written(form, precision)
    trained(path)
    part = {**Config.fromfile(path).model.llm, "pretrained_model_name_or_path": str(save_parts(tmp_path)["llm"])}
    expected = device_dtype() if precision == "auto" else getattr(torch, precision)
    assert BUILDER.build(part).dtype == expected


def test_a_precision_that_the_language_model_does_not_follow(trained):
    with pytest.raises(PallavaError, match=r"bfloat16 .*float32.*model\.llm .*torch_dtype"):
        trained(STAGE, optim_wrapper__precision="float32")
    trained(STAGE, optim_wrapper__precision="float32", model__llm__torch_dtype="float32")
    trained(STAGE, optim_wrapper__precision="bfloat16")
    trained(STAGE, optim_wrapper__precision="float32", dtype=torch.float32)


def test_a_frozen_language_model_may_be_of_another_type_on_purpose(trained):
    trained(STAGE, model__llm__torch_dtype="bfloat16", dtype=torch.float32)
    trained(STAGE, model__llm__torch_dtype="bfloat16", dtype=torch.float32, bf16=False)


@pytest.mark.parametrize("kind", ["pallava.model.loading.load_llm", "AutoModelForCausalLM.from_pretrained"])
def test_rounded_weights_are_not_trained_without_masters(trained, kind):
    options = {"model__freeze_llm": False, "model__llm__type": kind}
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(PallavaError, match=f"freeze_llm=False .*{dtype}.*deepspeed_zero2"):
            trained(STAGE, model__llm__torch_dtype=dtype, **options)
    trained(STAGE, model__llm__torch_dtype="bfloat16", bf16=True, **options)
    trained(STAGE, model__llm__torch_dtype="float32", **options)
    if kind.endswith("load_llm"):
        with pytest.raises(PallavaError, match="freeze_llm=False"):
            trained(STAGE, **options)
        trained(STAGE, dtype=torch.float32, **options)


def test_weights_in_4_bit_are_not_trained(trained):
    for options in ({"load_in_4bit": True}, {"quantization_config": {"load_in_4bit": True}}):
        options = {f"model__llm__{name}": value for name, value in options.items()}
        trained(STAGE, **options)
        with pytest.raises(PallavaError, match="freeze_llm=False .*4 bit"):
            trained(STAGE, model__freeze_llm=False, **options)


def test_other_models_are_let_alone():
    check_precision({"model": {"type": "a"}, "optim_wrapper": {"type": "OptimWrapper"}})
    check_precision({})


def test_the_precision_of_the_command_line_is_compared_under_deepspeed():
    """The trainer drops the wrapper, and the option with it."""
    config = Config({"optim_wrapper": {"type": "x", "precision": "auto"}, "precision": "auto"})
    config.merge_from_dict({"optim_wrapper.precision": "float32"})
    config.strategy = {"config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}}
    config.optim_wrapper = {"type": "DeepSpeedOptimWrapper"}
    config.model = {"llm": {"type": "load_llm"}}
    with pytest.raises(PallavaError, match=r"float32.*bfloat16"):
        check_precision(config)
