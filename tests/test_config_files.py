"""Settings that would change nothing are refused, and so is a config that Python cannot read."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from pallava.cli import main
from pallava.config_files import config_names, find_config
from pallava.errors import PallavaError
from pallava.training.failures import check_options

NAMES = sorted(config_names())


def set_option(name: str, option: str) -> Config:
    config = Config.fromfile(find_config(name))
    config.merge_from_dict(dict([option.split("=")]))  # as xtuner's trainer does it
    return config


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("lr=1e-5", "optim_wrapper.optimizer.lr"),
        ("max_epochs=1", "train_cfg.max_epochs"),
        ("tokenizer.padding_side=left", "train_dataloader.dataset.tokenizer.padding_side"),
        ("llm_name_or_path=x", "config copy"),
        ("train_dataloader.dataset.tokenizr.padding_side=left", "train_dataloader.dataset.tokenizer.padding_side"),
        ("param_scheduler.7.end=3", "param_scheduler.1.end"),
        ("default_hooks.sample_chats.every_n_iters=3", "default_hooks.sample_chat.every_n_iters"),
        ("modl.freeze_llm=False", "model.freeze_llm"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_would_change_nothing(name: str, option: str, advice: str) -> None:
    with pytest.raises(PallavaError) as refusal:
        set_option(name, option)
    assert option.split("=")[0] in str(refusal.value)
    assert advice in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_trainer_reads_may_be_set(name: str) -> None:
    assert set_option(name, "optim_wrapper.optimizer.lr=1e-5").optim_wrapper.optimizer.lr == "1e-5"
    assert set_option(name, "model.llm.torch_dtype=bfloat16").model.llm.torch_dtype == "bfloat16"  # a new setting
    assert set_option(name, "param_scheduler.1.end=3").param_scheduler[1].end == "3"
    assert set_option(name, "default_hooks.sample_chat.every_n_iters=7").default_hooks.sample_chat.every_n_iters == "7"
    assert set_option(name, "work_dir=x").work_dir == "x"
    check_options(
        {}, {"log_processor.window_size": 5, "visualizer.type": "x", "randomness": {}, "resume": True, "strategy": {}}
    )


@pytest.mark.parametrize(
    "key",
    [
        "optim_wrapper.optimizer.lr_mults.visual_encoder",
        "optim_wrapper.clip_grad.norm_type",
        "train_dataloader.prefetch_factor",
        "train_dataloader.persistent_workers",
        "env_cfg.dist_cfg.timeout",
        "log_processor.window_size",
        "default_hooks.my.type",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_new_setting_of_what_the_trainer_reads(name: str, key: str) -> None:
    value: Any = set_option(name, f"{key}=2")
    for part in key.split("."):
        value = value[part]
    assert value == "2"


def test_a_new_part_with_its_settings() -> None:
    config = {"default_hooks": {"timer": {"type": "Timer"}, "chat": None}, "param_scheduler": [{"type": "LinearLR"}]}
    check_options(config, {"default_hooks.my.interval": 3, "default_hooks.my.type": "my_hooks.MyHook"})
    for key in (
        "default_hooks.my.interval",
        "hooks.my.type",
        "my.type",
        "param_scheduler.1.type",
        "default_hooks.chat.type",
    ):
        with pytest.raises(PallavaError, match=key):
            check_options(config, {key: 3})


def test_a_config_that_is_not_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\nlr = 3")
    assert main(["train", str(tmp_path / "broken.py")]) == 2
    error = capsys.readouterr().err
    assert "broken.py" in error
    assert "line 1" in error


def test_a_missing_copy_is_not_the_config_that_it_is_a_copy_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_config("pallava_domain_alignment").is_file()
    for command in ("train", "doctor"):
        assert main([command, "pallava_domain_alignment.py"]) == 2
        assert "config 'pallava_domain_alignment.py' does not exist" in capsys.readouterr().err


def test_libraries_say_nothing_about_a_missing_gpu(tmp_path: Path) -> None:
    """On the standard output of a command that a script may read."""
    code = "from pallava.cli import main; main(['--version']); import deepspeed; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pallava" in done.stdout  # what follows may fail: bitsandbytes needs triton.ops
    assert "accelerator" not in done.stdout + done.stderr
    assert "compiled without GPU" not in done.stdout + done.stderr
