"""The benchmarks run; their numbers are for a quiet machine."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import folders as tiny_folders

pytestmark = pytest.mark.smoke

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_data_pipeline(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "data_pipeline.py"), "--small"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^(?:quilt-1m|pubmedvision|hashes) +(?:1,000|10,000) .*x +\d+$", result.stdout, re.M)) == 6
    assert result.stdout.count("memory below 500 MB: yes") == 2
    assert result.stdout.count("memory grows by at most 50 MB: yes") == 2
    assert result.stdout.count("a row takes at most 1.3 times as long: ") == 2
    assert re.search(r"\d+ pictures a second and core", result.stdout)
    assert re.search(r"ratio of the medians: \d+\.\d\d", result.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "peaks", "is_kept"),
    [(12.0, (100, 140), True), (14.0, (100, 140), False), (12.0, (100, 160), False), (12.0, (490, 501), False)],
)
def test_time_and_memory_of_the_larger_size_decide(seconds: float, peaks: tuple[float, float], is_kept: bool) -> None:
    is_linear: Any = runpy.run_path(str(BENCHMARKS / "data_pipeline.py"))["_is_linear"]
    small = {"num_rows": 100_000, "seconds": 1.0, "peak_mb": peaks[0]}
    large = {"num_rows": 1_000_000, "seconds": seconds, "peak_mb": peaks[1]}
    assert is_linear("quilt-1m", [small, large]) == is_kept


def test_encode() -> None:
    command = [sys.executable, str(BENCHMARKS / "encode.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("pallava, whole tower", "pallava, tokens of layer -2", "open_clip", "transformers"):
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert float(row.split()[-2]) > 0
    assert "images per second (at least 0.97:" in done.stdout


def test_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_folders.save_parts(tmp_path / "parts")
    model = tiny_folders.build(parts, tiny_folders.open_llm(parts, has_lora=True)).bfloat16()
    folder = tiny_folders.save(parts, model, tmp_path / "adapted")
    assert (folder / "adapter").is_dir()
    monkeypatch.syspath_prepend(BENCHMARKS)
    opened, _ = importlib.import_module("generate").open_folder(folder)
    assert {weight.dtype for weight in opened.parameters()} == {torch.float32}
    command = [sys.executable, str(BENCHMARKS / "generate.py"), "--small", "--threads", "1", "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for title in ("small, 8 tokens forced", "small, short answers", "adapted, its own answers"):
        assert title in done.stdout
    assert len(re.findall(r"^  (?:one by one|16 at once) .*(?: +\d+\.\d+){4}$", done.stdout, re.M)) == 6
    assert "times as many answers a second (at least 3:" in done.stdout


@pytest.mark.slow
def test_evaluate() -> None:
    command = [sys.executable, str(BENCHMARKS / "evaluate.py"), "--small", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for title in ("merged", "adapter"):
        assert re.search(
            rf"^{title} .*\n  b135031 .*(?: +\d+\.\d+){{4}}\n  now .*\n  ratio .*rounds from", done.stdout, re.M
        )
    assert len(re.findall(r"^chat, .* ratio \d+\.\d\d$", done.stdout, re.M)) == 2


def test_resume() -> None:
    command = [sys.executable, str(BENCHMARKS / "resume.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ +\d+(?: +\d+\.\d+){3}$", done.stdout, re.M)) == 3
    assert re.search(r"^ +40,000 +\(\d+\) +\d+\.\d\d +\(\d+\)$", done.stdout, re.M)
