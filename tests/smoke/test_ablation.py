"""The ablation as a user starts it, at a hundredth of its size: its numbers are worth nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_ablation import FOLDER, variants

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def ablation(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER), "--folder", str(folder), "--out", str(folder / "page.md"), *words]
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_proxy")}
    return subprocess.run(command, cwd=folder.parent, env=variables, capture_output=True, text=True)


def test_every_variant_trains_answers_and_is_not_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "ablation"
    folder.mkdir()
    one = ablation(folder, "--scale", "0.01", "--seeds", "1", "--variants", "cross-attention")
    assert one.returncode == 0, one.stdout + one.stderr
    assert "| cross-attention | 1 |" in (folder / "page.md").read_text()
    done = ablation(folder, "--scale", "0.01", "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "cross-1" / "log.txt").read_text()
    assert log.count("nothing has changed, skipped") == 7
    table = (folder / "page.md").read_text()
    assert all(f"| {name} | 1 |" in table for name in variants.VARIANTS)
    assert not list(folder.glob("*/demo/model/model.safetensors"))  # a run leaves its answers, not its weights
