"""The whole demo at a small fraction of its size: every step runs, nothing is learnt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.demo.stages import computes_in_bf16

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = "pallava_instruction_tuning.py"

pytestmark = pytest.mark.smoke

KEYS = {
    "closed_accuracy",
    "closed_accuracy_shuffled",
    "closed_accuracy_majority",
    "open_exact_match",
    "attribute_accuracy",
    "fine_detail_accuracy",
    "num_questions",
    "seconds",
}
PLIP_KEYS = {"num_pictures"} | {
    f"{attribute}_{key}"
    for attribute in ("stain", "density")
    for key in ("accuracy", "accuracy_untrained", "largest_class")
}


def demo(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pallava", "demo", "--scale", "0.01"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_step_runs_once(tmp_path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert set(report) == KEYS
    assert len(report["attribute_accuracy"]) == 6
    plip = json.loads((tmp_path / "demo" / "plip_report.json").read_text())
    assert set(plip) == PLIP_KEYS
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<svg") == 3
    assert "not for diagnosis" in page
    assert 'src="data:image/png' in page
    assert "not for diagnosis" in page
    assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
    half = "torch_dtype='bfloat16'"
    assert (half in (tmp_path / "demo" / "stage2" / CONFIG).read_text()) is computes_in_bf16()

    pointing = [sys.executable, str(BENCHMARKS / "pointing.py"), "demo"]
    told = subprocess.run(pointing, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "chance  elsewhere" in told.stdout

    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped") == 9


def test_a_wrong_scale_is_told_in_a_sentence(tmp_path):
    command = [sys.executable, "-m", "pallava", "demo", "--scale", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the demo's scale must be above 0")
