"""Each work-around works, and is still needed: where the second fails, delete it."""

import importlib
import inspect
import os
import pickle
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from packaging.requirements import Requirement

from pallava.cli.train import run_train
from pallava.config_files import find_config
from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.training import compat

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a work-around for machines without a GPU")


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def save_like_mmengine(path: Path, **extra) -> Path:
    buffer = HistoryBuffer()
    for value in (1.0, 2.0):
        buffer.update(value)
    content = {
        "message_hub": {"log_scalars": {"loss": buffer}, "runtime_info": {"x": np.float64(1), "y": np.arange(2)}},
        "meta": {"seed": 7, "cfg": ConfigDict(a=1)},
        "state_dict": {"w": torch.ones(2)},
    }
    torch.save({**content, **extra}, path)
    return path


def test_applied_once():
    assert compat.apply() == compat.apply()
    assert "block_broken_bitsandbytes" in compat.apply()
    assert "keep_float32_in_conversion" in compat.apply()
    if not torch.cuda.is_available():
        assert "describe_cpu_to_xtuner" in compat.apply()


def test_lora_without_bitsandbytes():
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from transformers.utils import is_bitsandbytes_available

    assert not any(ask() for ask in (is_bnb_available, is_bnb_4bit_available, is_bitsandbytes_available))


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantization_is_refused_with_the_reason(tmp_path, bits):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(PallavaError, match=r"bitsandbytes, which cannot be imported \("):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**{bits: True}))


@on_cpu
def test_deepspeed_trains_in_float32_on_a_cpu():
    from xtuner.tools.utils import auto_dtype_of_deepspeed_config

    settings = auto_dtype_of_deepspeed_config({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}})
    assert settings == {"fp16": {"enabled": False}, "bf16": {"enabled": False}}
    assert not hasattr(torch.cpu, "is_bf16_supported"), "torch answers now: drop describe_cpu_to_xtuner"


def test_deepspeed_trains_in_fp16_where_bf16_is_emulated(monkeypatch):
    """As on a GPU before Ampere, which torch itself says yes for."""
    from xtuner.tools import utils

    def is_bf16_supported(including_emulation=True):
        return including_emulation

    assert inspect.signature(torch.cuda.is_bf16_supported).parameters["including_emulation"].default is True
    assert "get_torch_device().is_bf16_supported()" in inspect.getsource(utils.auto_dtype_of_deepspeed_config)
    monkeypatch.setattr(utils, "get_torch_device", None)  # is put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert compat.describe_old_gpu_to_xtuner()
    settings = utils.auto_dtype_of_deepspeed_config({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}})
    assert settings == {"fp16": {"enabled": True}, "bf16": {"enabled": False}}
    assert device_dtype() == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert not compat.describe_old_gpu_to_xtuner()
    assert device_dtype() == torch.bfloat16


@on_cpu
def test_processes_without_a_gpu(monkeypatch, tmp_path):
    from mmengine.dist import utils
    from mmengine.model import MMDistributedDataParallel

    assert "torch.cuda.set_device(local_rank)" in inspect.getsource(utils._init_dist_pytorch.__wrapped__)
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**group, "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # is put back
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    utils._init_dist_pytorch("nccl")
    try:
        assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
        assert torch.distributed.get_backend() == "gloo"
        model = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError, match="device_ids"):
            MMDistributedDataParallel.__init__.__wrapped__(
                MMDistributedDataParallel.__new__(MMDistributedDataParallel), module=model, device_ids=[0]
            )
        assert MMDistributedDataParallel(module=model, device_ids=[0]).device_ids is None
    finally:
        torch.distributed.destroy_process_group()


def test_deepspeed_alone_needs_no_mpi(monkeypatch):
    import deepspeed
    from mmengine._strategy import DeepSpeedStrategy

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def look_for_mpi(**_):
        raise ModuleNotFoundError("mpi4py")

    monkeypatch.setattr(deepspeed.comm.comm, "mpi_discovery", look_for_mpi)
    with pytest.raises(ModuleNotFoundError, match="mpi4py"):
        deepspeed.init_distributed("gloo")
    assert DeepSpeedStrategy._wrap_model.__wrapped__
    monkeypatch.setattr(os, "environ", dict(os.environ))
    compat.name_single_process()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


@pytest.mark.parametrize("launched", [{"RANK": "1", "WORLD_SIZE": "2"}, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_launched_processes_keep_their_names(monkeypatch, launched):
    monkeypatch.setattr(os, "environ", dict(launched))
    compat.name_single_process()
    assert os.environ == launched


@on_cpu
def test_deepspeed_compiles_nothing():
    backend = importlib.import_module("deepspeed.comm.torch")
    assert "builder.load()" in inspect.getsource(backend), "nothing is compiled now: drop gather_without_compiling"
    assert backend.build_shm_op() is None


def test_the_gather_of_old_deepspeed():
    bounds = next(r.specifier for r in map(Requirement, requires("pallava")) if r.name == "deepspeed")
    assert bounds.contains("0.18.9"), "older deepspeed is not admitted any more: drop gather_without_gradients"
    if "gather_without_gradients" not in compat.apply():
        from deepspeed.runtime.zero import stage_1_and_2

        assert hasattr(stage_1_and_2, "all_gather_dp_groups")


def test_checkpoints_of_mmengine_load(tmp_path):
    from mmengine.runner.checkpoint import _load_checkpoint
    from xtuner.tools.utils import get_seed_from_checkpoint

    path = save_like_mmengine(tmp_path / "iter_1.pth")
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(path)
    assert get_seed_from_checkpoint(str(path)) == 7
    loss = _load_checkpoint(str(path), map_location="cpu")["message_hub"]["log_scalars"]["loss"]
    assert (loss.mean(), loss.current(), loss.statistics("max")) == (1.5, 2.0, 2.0)


def test_what_a_checkpoint_may_not_ask_for():
    assert compat.history_method(HistoryBuffer, "mean") is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, "__init__"), (os, "system")):
        with pytest.raises(ValueError, match="must not ask for"):
            compat.history_method(owner, name)


def test_malicious_checkpoints_execute_nothing(tmp_path, monkeypatch):
    from mmengine.runner.checkpoint import _load_checkpoint
    from xtuner.model.utils import guess_load_checkpoint
    from xtuner.tools.utils import get_seed_from_checkpoint

    monkeypatch.chdir(tmp_path)
    path = save_like_mmengine(tmp_path / "bad.pth", extra=Malicious())
    for read in (guess_load_checkpoint, get_seed_from_checkpoint, _load_checkpoint):
        with pytest.raises(PallavaError, match=r"bad\.pth.*mkdir"):
            read(str(path))
    assert not (tmp_path / "pwned").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "pwned").exists(), "the file does nothing, and the test proves nothing"


@pytest.mark.parametrize("content", [b"", b"<html>", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from mmengine.runner.checkpoint import _load_checkpoint
    from xtuner.tools.utils import get_seed_from_checkpoint

    path = save_like_mmengine(tmp_path / "bad.pth")
    path.write_bytes(path.read_bytes()[:900] if content == "cut" else content)
    for read in (get_seed_from_checkpoint, _load_checkpoint, TorchCheckpointEngine().load):
        with pytest.raises(PallavaError, match=r"bad\.pth' is not a readable") as refused:
            read(str(path))
        assert len(str(refused.value)) < 300
    with pytest.raises(FileNotFoundError):
        _load_checkpoint(str(tmp_path / "none.pth"))


def test_other_loading_is_as_strict_as_before():
    allowed = torch.serialization.get_safe_globals()
    assert HistoryBuffer not in allowed


def test_conversion_keeps_float32():
    from xtuner.utils import zero_to_any_dtype

    read = zero_to_any_dtype.get_state_dict_from_zero_checkpoint
    assert read.keywords == {"dtype": torch.float32}
    assert inspect.signature(read.func).parameters["dtype"].default == torch.float16


def test_a_cpu_has_no_half_precision(monkeypatch):
    from xtuner.tools import utils

    monkeypatch.setattr(utils, "get_torch_device", utils.get_torch_device)
    compat._describe_to_xtuner(has_fp16=False)
    cpu = utils.get_torch_device()
    assert not cpu.is_available()
    assert not cpu.is_bf16_supported()


@on_cpu
@pytest.mark.parametrize("name", ["pallava_domain_alignment", "pallava_instruction_tuning"])
@pytest.mark.parametrize("backend", ["torch", "deepspeed"])
def test_processes_wait_two_hours_for_each_other(monkeypatch, name, backend):
    """The plain runner starts the group by torch, the other one by DeepSpeed; both read it from the config."""
    import deepspeed
    from mmengine.dist import init_dist

    monkeypatch.setattr(os, "environ", dict(os.environ))
    compat.name_single_process()
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", None)
    monkeypatch.setattr(torch.multiprocessing, "set_start_method", lambda _: None)  # it would stay
    init_dist("pytorch", init_backend=backend, **Config.fromfile(find_config(name)).env_cfg.dist_cfg)
    try:
        group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert group.options._timeout.total_seconds() == 2 * 60 * 60
    finally:
        torch.distributed.destroy_process_group()


def test_a_transformers_that_only_answers_does_not_train(monkeypatch):
    monkeypatch.setattr("pallava.io.stacks.version", lambda name: "5.24.0")
    with pytest.raises(PallavaError, match=r"4\.48 or 4\.57 to train, got 5\.24"):
        run_train("pallava_domain_alignment", [], None, launcher=None)
