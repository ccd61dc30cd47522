"""`pallava train` as a user types it: its exit code, and its last line."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke


def train(*arguments, **options):
    command = [Path(sys.executable).with_name("pallava"), "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_no_such_config(tmp_path):
    done = train("nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No config nonsense: give the path of a file, or one of")
    assert "Traceback" not in done.stderr


def test_a_failing_training_fails(tmp_path):
    done = train(
        "pallava_domain_alignment", "--cfg-options", "model.llm.pretrained_model_name_or_path=./none", cwd=tmp_path
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("No language model at ./none: the folder does not exist. Set llm_name_or_path.")
