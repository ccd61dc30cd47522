"""A cleaning run that is killed, and killed again, ends with the same bytes as one that is not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tiny.endpoint import Act, stub_endpoint
from tests.tiny.records import save_pairs, save_pmc_oa, save_pubmedvision, save_quilt

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[2]
OUTPUTS = ("kept.jsonl", "dropped.jsonl", "pairs.json", "summary.json", "index.html")


def start(trees: Path, out: Path, options: Sequence[str]) -> subprocess.Popen:
    sources = {"pubmedvision": "pv", "quilt-1m": "quilt", "pmc-oa": "oa", "pairs": "pairs"}
    words = [word for name, root in sources.items() for word in ("--source", f"{name}={trees / root}")]
    command = [sys.executable, "-m", "pallava", "data", "clean", str(out), *words, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(trees: Path, out: Path, options: Sequence[str]) -> float:
    begin = time.monotonic()
    assert start(trees, out, options).wait(timeout=300) == 0
    return time.monotonic() - begin


def read(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS if (out / name).exists()}


def kill_after(trees: Path, out: Path, seconds: float, options: Sequence[str]) -> bool:
    """Tells whether the run was in the middle of its work."""
    process = start(trees, out, options)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL and (out / "scores.sqlite").exists()


def check(tmp_path: Path, num_kills: int, num_rows: int, options: Sequence[str]) -> tuple[int, int]:
    """Gives the number of runs that came to their end, and of those that were killed on the way."""
    trees = tmp_path / "trees"
    save_pubmedvision(trees / "pv", num_rows)
    save_quilt(trees / "quilt", num_rows, 1000)
    save_pmc_oa(trees / "oa", num_rows, 2000)
    save_pairs(trees / "pairs", num_rows, 1000 - num_rows // 2)
    duration = finish(trees, tmp_path / "whole", options)
    whole = read(tmp_path / "whole")
    assert len(whole) >= 4
    draw, outs = random.Random(0), [tmp_path / "killed-0"]
    num_in_work = num_killed = 0
    for _ in range(5 * num_kills):
        num_in_work += kill_after(trees, outs[-1], draw.uniform(0.3, 0.95) * duration, options)
        num_killed += 1
        if num_in_work == num_kills:
            break
        if (outs[-1] / "summary.json").exists():  # was sooner at the end than killed
            outs.append(tmp_path / f"killed-{len(outs)}")
    assert num_in_work == num_kills
    for out in outs:
        finish(trees, out, options)
        assert read(out) == whole
    return 1 + len(outs), num_killed


def test_two_kills(tmp_path):
    check(tmp_path, num_kills=2, num_rows=40, options=["--workers", "1"])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_ten_kills(tmp_path, num_workers):
    check(tmp_path, num_kills=10, num_rows=150, options=["--workers", str(num_workers)])


@pytest.mark.slow
def test_kills_while_an_endpoint_is_asked(tmp_path):
    """What was answered is not asked again, but for the few answers that were on their way at a kill."""
    with stub_endpoint(lambda text, before: Act("human" if len(text) % 3 else "non-human", delay=0.02)) as server:
        judge = ["--species", "endpoint", "--species-url", server.url, "--species-model", "judge", "--concurrency", "2"]
        num_runs, num_killed = check(tmp_path, num_kills=4, num_rows=60, options=[*judge, "--workers", "1"])
        assert len(server.prompts) > 100
        assert sum(server.prompts.values()) <= num_runs * len(server.prompts) + 2 * num_killed
