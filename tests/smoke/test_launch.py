"""`pallava train` as a user types it: its exit code, and its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke


def train(*arguments, **options):
    command = [Path(sys.executable).with_name("pallava"), "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_no_such_config(tmp_path):
    done = train("nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: config 'nonsense' ")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Start a training with options in a folder that also holds a damaged image and weights of another model."""
    folder = tmp_path_factory.mktemp("run")
    data = save_data(folder)
    config = write_config("pallava_domain_alignment", save_parts(folder), data, folder / "tiny.py", num_steps=4)
    row = {"id": "7", "image": "damaged.png", "conversations": [{"from": "human", "value": "<image>\nis ?"}]}
    row["conversations"].append({"from": "gpt", "value": "yes"})
    (folder / "damaged.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "images" / "damaged.png").write_bytes((folder / "images" / "0.png").read_bytes()[:200])
    other = {"connector.qformer.encoder.layer.0.crossattention.attention.key.weight": torch.ones(8, 8)}
    torch.save({"state_dict": other}, folder / "other.pth")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # the config names a hook of the tests

    def start(*options, deepspeed=(), **variables):
        arguments = ("--work-dir", "run", *deepspeed, "--cfg-options", *options)
        return train(config, *arguments, cwd=folder, env={**environment, **variables})

    return start


ROWS = "train_dataloader.dataset.data_path"
LLM = "model.llm.pretrained_model_name_or_path=./none"
SLOW = pytest.mark.slow  # what raises these is tested by itself, and how they are reported by the other faults


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        pytest.param(["lr=1e-5"], "optim_wrapper.optimizer.lr", id="no effect"),
        pytest.param([f"{ROWS}=./damaged.jsonl", "train_dataloader.num_workers=1"], "images/damaged.png", id="image"),
        pytest.param([LLM], "./none", id="LLM", marks=SLOW),
        pytest.param([f"{ROWS}=./none.jsonl"], "none.jsonl", id="data", marks=SLOW),
        pytest.param(["model.visual_encoder.source=./none"], "none", id="encoder", marks=SLOW),
        pytest.param(["model.connector.num_layers=3"], "num_layers", id="key", marks=SLOW),
        pytest.param(["model.pretrained_pth=./other.pth"], "other.pth", id="weights", marks=SLOW),
    ],
)
def test_a_users_mistake_is_one_sentence_and_fails(run, options, fact):
    done = run(*options)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("error: ")
    assert fact in last
    assert "Traceback" not in last


@pytest.mark.slow
def test_a_training_that_would_learn_nothing_is_refused(run):
    done = run("optim_wrapper.accumulative_counts=5", deepspeed=("--deepspeed", "pallava_zero1"))
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, "error: " in last, "accumulative_counts" in last) == (1, True, True)


@pytest.mark.parametrize(
    ("name", "variables", "fact"),
    [
        pytest.param("deepspeed_zero3", {}, "stage 3", id="ZeRO-3 alone", marks=SLOW),
        pytest.param("deepspeed_zero3_offload", {"NPROC_PER_NODE": "2"}, "stage 3", id="ZeRO-3 with two processes"),
        pytest.param("deepspeed_zero2", {"CUDA_VISIBLE_DEVICES": "99"}, "CUDA_VISIBLE_DEVICES=99", id="no such card"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_weight_is_read(run, name, variables, fact):
    done = run(LLM, deepspeed=("--deepspeed", name), **variables)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors
    assert all(fact in line for line in errors)
