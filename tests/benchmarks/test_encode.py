"""The benchmark of the encoder runs, and compares what computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encode.py"


@pytest.mark.smoke
def test_the_small_benchmark_prints_every_row() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("pallava, whole tower", "pallava, tokens of layer -2", "open_clip", "transformers"):
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert float(row.split()[-2]) > 0
    assert "images per second (at least 0.97:" in done.stdout
