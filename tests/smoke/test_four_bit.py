"""QLoRA from the training to the answers, on a CPU, with the bitsandbytes that `constraints/four_bit.txt` names.

It stands in front of the environment, whose own one cannot be imported.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from tests.smoke.test_serve import served
from tests.smoke.test_training import ROOT, assert_resumes, environment, read, train
from tests.tiny.answering_model import write_questions
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
QUESTION = "what is shown here ?"


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install_bitsandbytes(tmp_path_factory.mktemp("packages"))


def install_bitsandbytes(target: Path) -> dict[str, str]:
    """Return the variables of an environment that can quantize."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target)]
    done = subprocess.run([*command, "-r", str(ROOT / "constraints" / "four_bit.txt")], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"pip got no bitsandbytes from the package index, which this test needs:\n{done.stderr}")
    return {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    data = save_data(folder, num_rows=24, num_without_image=8)
    path = write_config("pallava_instruction_tuning", save_parts(folder), data, folder / "tiny.py")
    changed = Config.fromfile(path)
    changed.model.llm.load_in_4bit = True
    changed.model.llm_lora.init_lora_weights = "gaussian"  # or eight steps would hardly move the answers
    changed.optim_wrapper.optimizer.lr = 0.02
    changed.dump(path)
    return path


@pytest.fixture(scope="module")
def trained(config: Path, four_bit: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("qlora") / "run"
    train(config, work_dir, "--seed", "1024", command=("xtuner",), **four_bit)
    return work_dir


def pallava(*words: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pallava", *map(str, words)]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def folders(trained: Path, four_bit: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return convert_both(trained, tmp_path_factory.mktemp("folders"), four_bit)


def convert_both(run: Path, out: Path, four_bit: dict[str, str]) -> dict[str, Path]:
    pallava("convert", run, out / "merged", "--merge", **four_bit)
    pallava("convert", run, out / "adapter")  # rounds nothing, and needs no bitsandbytes
    return {"merged": out / "merged", "adapter": out / "adapter"}


@pytest.fixture(scope="module")
def computed(config: Path, folders: dict[str, Path], four_bit: dict[str, str]) -> dict[str, Any]:
    return compute(config, folders, four_bit)


def compute(config: Path, folders: dict[str, Path], four_bit: dict[str, str]) -> dict[str, Any]:
    base, file = Config.fromfile(config).model.llm.pretrained_model_name_or_path, config.parent / "computed.pt"
    command = [sys.executable, "-m", "tests.smoke.four_bit_answers", base, *map(str, folders.values()), str(file)]
    done = subprocess.run(command, env=environment(**four_bit), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file)


def test_a_run_resumes(config: Path, trained: Path, four_bit: dict[str, str], tmp_path: Path) -> None:
    start, end = read(trained, "start")[0], read(trained, "end")[0]
    assert (start["frozen"], start["connector"] == end["connector"]) == (end["frozen"], False)
    assert_resumes(config, trained, tmp_path / "resumed", **four_bit)


def test_two_processes_under_zero(config: Path, four_bit: dict[str, str], tmp_path: Path) -> None:
    two = {"NPROC_PER_NODE": "2", **four_bit}
    train(config, tmp_path / "run", "--deepspeed", "pallava_zero2", "--seed", "1024", **two)
    assert read(tmp_path / "run", "end", 0)[0]["connector"] == read(tmp_path / "run", "end", 1)[0]["connector"]
    pallava("convert", tmp_path / "run", tmp_path / "merged", "--merge", **four_bit)


def test_answers_are_those_of_the_adapter_on_the_dequantized_base(computed: dict[str, Any]) -> None:
    assert_equal_to_dequantized(computed)


def assert_equal_to_dequantized(computed: dict[str, Any]) -> None:
    logits, kinds = computed["logits"], computed["kinds"]
    assert computed["rounding"] == {"torch.float32": True, "torch.bfloat16": True}
    for name in ("merged", "adapter"):
        torch.testing.assert_close(logits[name], logits["by hand"], atol=1e-5, rtol=0)
    assert (logits["in 4 bit"] - logits["merged"]).abs().max() > 1e-3  # what rounding changes
    assert kinds["merged"] == kinds["by hand"] == []
    assert len(kinds["adapter"]) == len(kinds["in 4 bit"]) == 14
    assert all(name.startswith("llm.model.layers.") for name in kinds["in 4 bit"])


def test_the_work_around_is_still_needed(computed: dict[str, Any]) -> None:
    """Where this fails, transformers itself takes a CPU: drop it from `need_bitsandbytes`."""
    assert "'frozenset' object has no attribute 'discard'" in computed["fault"]


def test_commands_ask_in_4_bit(folders: dict[str, Path], four_bit: dict[str, str], tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions", 2)
    image = next(questions.parent.glob("*.png"))
    asked = ("--image", image, "--question", QUESTION, "--max-new-tokens", 4)
    for words in ((folders["adapter"],), (folders["merged"], "--load-in-4bit")):
        assert pallava("chat", *words, *asked, **four_bit).stdout.strip()
    evaluation = ("custom", "--data", questions, "--out", tmp_path / "out", "--load-in-4bit", "--max-new-tokens", 4)
    assert "questions" in pallava("evaluate", folders["merged"], *evaluation, **four_bit).stdout
    with served(folders["merged"], "--load-in-4bit", **environment(**four_bit)) as (_, url):
        turn = {"role": "user", "content": QUESTION}
        given = {"messages": [turn], "max_tokens": 4}
        answer = httpx.post(url + "/v1/chat/completions", json=given, timeout=60).json()
        assert answer["choices"][0]["message"]["content"]


def test_what_cannot_be_in_4_bit_is_refused(
    folders: dict[str, Path], trained: Path, four_bit: dict[str, str], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    asked = ("--image", tmp_path / "image.png", "--question", QUESTION)
    twice = pallava("chat", folders["adapter"], "--load-in-4bit", *asked, code=2, **four_bit)
    assert str(folders["adapter"]) in twice.stderr
    for words in (
        ("chat", folders["adapter"], *asked),
        ("chat", folders["merged"], "--load-in-4bit", *asked),
        ("convert", trained, tmp_path / "out", "--merge"),
    ):
        assert "pip install --no-deps bitsandbytes==0.50.2" in pallava(*words, code=2).stderr
