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


ROWS = "train_dataloader.dataset.data_path"
FAULTS = {
    "no language model": (["model.llm.pretrained_model_name_or_path=./none"], "No language model at ./none"),
    "no data": ([f"{ROWS}=./none.jsonl"], "no training data at none.jsonl"),
    "no encoder": (["model.visual_encoder.source=./none"], "No visual encoder at none"),
    "unreadable image": ([f"{ROWS}=./damaged.jsonl", "train_dataloader.num_workers=1"], "images/damaged.png"),
    "wrong key": (["model.connector.num_layers=3"], "model.connector has no num_layers"),
    "weights of another model": (["model.pretrained_pth=./other.pth"], "do not fit PALLaVAModel"),
}


def test_a_users_mistake_is_one_sentence_and_fails(tmp_path):
    data = save_data(tmp_path)
    config = write_config("pallava_domain_alignment", save_parts(tmp_path), data, tmp_path / "tiny.py", num_steps=4)
    row = {"id": "7", "image": "damaged.png", "conversations": [{"from": "human", "value": "<image>\nis ?"}]}
    row["conversations"].append({"from": "gpt", "value": "yes"})
    (tmp_path / "damaged.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "images" / "damaged.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:200])
    other = {"connector.qformer.encoder.layer.0.crossattention.attention.key.weight": torch.ones(8, 8)}
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    command = [Path(sys.executable).with_name("pallava"), "train", config, "--work-dir", "run", "--cfg-options"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    output["env"] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # the config names a hook of the tests
    started = {fault: subprocess.Popen([*command, *options], **output) for fault, (options, _) in FAULTS.items()}
    for fault, process in started.items():  # side by side: each spends its time on imports
        errors = process.communicate(timeout=300)[1]
        last = errors.strip().splitlines()[-1]
        assert process.returncode == 1, (fault, errors[-2000:])
        assert last.startswith("error: "), (fault, errors[-2000:])
        assert FAULTS[fault][1] in last
        assert "Traceback" not in errors.replace("Original Traceback", ""), fault
