"""The benchmarks run; their numbers are for a quiet machine."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.slow
def test_encode() -> None:
    command = [sys.executable, str(BENCHMARKS / "encode.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("pallava, whole tower", "pallava, tokens of layer -2", "open_clip", "transformers"):
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert float(row.split()[-2]) > 0
    assert "images per second (at least 0.97:" in done.stdout


@pytest.mark.slow
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
def test_serve() -> None:
    command = [sys.executable, str(BENCHMARKS / "serve.py"), "--small", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for clients in (1, 4, 16):
        assert re.search(rf"^ *{clients} clients, in batches +\d+\.\d+", done.stdout, re.M)
    assert "times as many answers (at least 3:" in done.stdout
    assert "times as soon (at least 3:" in done.stdout


@pytest.mark.slow
def test_evaluate() -> None:
    command = [sys.executable, str(BENCHMARKS / "evaluate.py"), "--small", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for title in ("merged", "adapter"):
        assert re.search(
            rf"^{title} .*\n  b135031 .*(?: +\d+\.\d+){{4}}\n  now .*\n  ratio .*rounds from", done.stdout, re.M
        )
    assert len(re.findall(r"^chat, .*\n  first turn .* ratio \d+\.\d\d$", done.stdout, re.M)) == 4


@pytest.mark.slow
def test_matmul() -> None:
    command = [sys.executable, str(BENCHMARKS / "matmul.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(?:encoder|language model|LoRA|vocabulary).* \d+ +\d+ +\d+\.\d\d$", done.stdout, re.M)
    assert len(rows) == 20


@pytest.mark.slow
def test_resume() -> None:
    command = [sys.executable, str(BENCHMARKS / "resume.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ +\d+(?: +\d+\.\d+){3}$", done.stdout, re.M)) == 3
    assert re.search(r"^ +40,000 +\(-?\d+\) +\d+\.\d\d +\(-?\d+\)$", done.stdout, re.M)


def test_contestants_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours in three ways, and the published order, have one loss and one gradient; the other two recipes train."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    training = importlib.import_module("training")
    torch.manual_seed(0)
    model, batch = training.build_ours(training.TINY), training.make_batch(training.TINY, training.Shape())
    steps = training.own_steps(model, batch)
    training.check_equal(model, steps, batch)
    flops = {name: training.count_flops(step, batch) for name, step in steps.items()}
    assert flops[training.CACHED] < flops[training.OURS] < flops[training.RECOMPUTING] < flops[training.PUBLISHED]
    wrong = {**steps, training.PUBLISHED: lambda batch: 1.001 * training.own_loss(model, batch)}
    with pytest.raises((AssertionError, SystemExit)):
        training.check_equal(model, wrong, batch)
    others = [build(training.TINY)(batch) for build in (training.build_next, training.build_xtuner)]
    assert all(loss.requires_grad and torch.isfinite(loss) for loss in others)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "training.py"), "--small", "--sweep", str(tmp_path / "sweep.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"times as fast \(rounds from", done.stdout)) == 5
    points = json.loads((tmp_path / "sweep.json").read_text())
    assert len(points) == 7
    assert all(point["published_s"] > 0 for point in points)


@pytest.fixture
def flops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("flops")


def test_flops_are_those_of_a_real_step(flops: Any) -> None:
    predicted, counted = zip(*flops.compare_tiny().values(), strict=True)
    assert predicted == pytest.approx(counted, rel=flops.MAX_ERROR)
    assert len(set(predicted)) == 4
    assert list(predicted) == sorted(predicted, reverse=True)  # each order has less to do than the one before


def test_padding_and_waiting_are_not_useful(flops: Any) -> None:
    dealt = np.array([[[1, 3], [2, 3]], [[2, 2], [2, 2]]])  # a card pads and waits in the first step of two
    assert flops.useful_share(dealt, lambda words: words) == pytest.approx((9 + 8) / (4 * 3 + 4 * 2))
    words = np.random.default_rng(0).integers(20, 400, 5760)
    grouped, mixed = (flops.deal(words, 4, is_grouped=is_grouped) for is_grouped in (True, False))
    assert sorted(grouped.flat) == sorted(mixed.flat) == sorted(words)
    assert flops.useful_share(grouped, lambda words: words) > 0.9 > flops.useful_share(mixed, lambda words: words)


@pytest.mark.slow
def test_flops() -> None:
    command = [sys.executable, str(BENCHMARKS / "flops.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("published", "+ nothing"))]
    assert len(rows) == 6  # of memory, and of two stages
    assert "stage 1, domain alignment: 518,413 rows x 9 epochs, batch 6 x 6" in done.stdout


@pytest.mark.slow
def test_gpu_without_a_card() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: nothing" in done.stdout
    assert "losses of 6 resumed steps differ by at most 0\n" in done.stdout
    assert len(re.findall(r"^(?:convert|chat) +[\d.]+ s, exit code 0$", done.stdout, re.M)) == 2
    assert (
        len(re.findall(r"^(?:bf16|plain runner)[a-z, ]*(?: +[\d.]+){4} +(?:nan|[\d.]+) +[\d.]+$", done.stdout, re.M))
        == 4
    )


def test_a_report_keeps_the_sections_of_others(tmp_path: Path) -> None:
    run: Any = runpy.run_path(str(BENCHMARKS / "run.py"))
    (tmp_path / "works.py").write_text("print('a ratio of 2.0')")
    (tmp_path / "ends.py").write_text("print('a table')\nraise SystemExit(3)")
    assert run["find_benchmarks"](tmp_path) == ["ends", "works"]
    assert run["run_all"](["ends", "works"], tmp_path) == ["ends"]
    before = run["read_sections"](tmp_path / "RESULTS.md")
    assert "exit code 3" in before["ends"]
    assert "a table" in before["ends"]
    assert "\na ratio of 2.0\n" in before["works"]
    (tmp_path / "ends.py").write_text("print('a ratio of 3.0')")
    assert run["run_all"](["ends"], tmp_path) == []
    after = run["read_sections"](tmp_path / "RESULTS.md")
    assert after["works"].strip() == before["works"].strip()
    assert "exit code" not in after["ends"]
    assert "\na ratio of 3.0\n" in after["ends"]


def test_the_cost_of_a_step_is_drawn(tmp_path: Path) -> None:
    shapes = [(6, 120, 2), (4, 120, 2), (6, 60, 2), (6, 120, 1)]
    points = [
        {"tiles": tiles, "text": text, "batch": batch}
        | dict.fromkeys(("published_s", "ours_s", "ours_recomputing_s"), tiles * batch + text / 60)
        for tiles, text, batch in shapes
    ]
    runpy.run_path(str(BENCHMARKS / "run.py"))["draw"](points, tmp_path / "cost.png")
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.size == (1500, 480)
        assert np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 10
