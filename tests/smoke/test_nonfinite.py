"""A loss that is not finite, in the plain runner and under DeepSpeed: the step is skipped, ten of them are the end."""

import json
import re
from pathlib import Path

import pytest
import torch

from pallava.model.weights import read_weights
from tests.smoke.test_training import ZERO2, start
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
STEPS, COUNTS = 12, 2
RUNNERS = {"plain": ((), 1), "zero2": (ZERO2, 2)}
SLOW = pytest.mark.slow  # the quick ones are one of each kind


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("poisoned")
    return write_config("pallava_domain_alignment", save_parts(folder), save_data(folder), folder / "tiny.py", STEPS)


def run(config, work_dir, runner, first, last, **options):
    """Train with NaN in the batches of the last process; return exit code and output."""
    deepspeed, processes = RUNNERS[runner]
    keys = {
        "optim_wrapper.accumulative_counts": COUNTS,
        "default_hooks.checkpoint.interval": COUNTS,
        "default_hooks.sample_chat.every_n_iters": 0,
        "default_hooks.poison.type": "tests.tiny.poison.Poison",
        "default_hooks.poison.first": first,
        "default_hooks.poison.last": last,
        "default_hooks.poison.rank": processes - 1,
        **options,
    }
    words = [f"{key}={value}" for key, value in keys.items()]
    process = start(config, work_dir, *deepspeed, "--seed", "1", "--cfg-options", *words, NPROC_PER_NODE=str(processes))
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def skipped_steps(checkpoint) -> int:
    file = checkpoint / "mp_rank_00_model_states.pt" if checkpoint.is_dir() else checkpoint
    return torch.load(file, weights_only=False)["message_hub"]["runtime_info"]["skipped_steps"]


@pytest.mark.parametrize("runner", ["plain", pytest.param("zero2", marks=SLOW)])
def test_one_loss_is_not_finite(config, tmp_path, runner):
    """Iteration 5 is in the third step: that step changes nothing, and the others do."""
    code, output = run(config, tmp_path, runner, first=5, last=5)
    assert code == 0, output[-3000:]
    states = {step: read_weights(tmp_path / f"iter_{step}.pth") for step in (4, 6, 8, STEPS)}
    assert all(torch.equal(states[4][key], states[6][key]) for key in states[4])
    assert any(not torch.equal(states[6][key], states[8][key]) for key in states[6])
    assert all(value.isfinite().all() for value in states[STEPS].values())
    assert skipped_steps(tmp_path / f"iter_{STEPS}.pth") == 1
    (line,) = [line for line in output.splitlines() if "skipped" in line and "iteration 6" in line]
    rows = [json.loads(row)["id"] for row in (config.parent / "rows.jsonl").read_text().splitlines()]
    assert re.search(r"row (\w+)", line)[1] in rows


@pytest.mark.parametrize("runner", [pytest.param("plain", marks=SLOW), "zero2"])
def test_too_many_in_a_row_are_the_end(config, tmp_path, runner):
    code, output = run(config, tmp_path, runner, 5, STEPS, **{"default_hooks.nonfinite.max_in_a_row": 3})
    assert code == 1
    assert "Traceback" not in output
    assert "error: 3 optimizer steps in a row" in output
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_8.pth")  # the third ends with iteration 10
    assert all(value.isfinite().all() for value in read_weights(tmp_path / "iter_8.pth").values())
