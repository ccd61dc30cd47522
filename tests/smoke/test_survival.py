"""A training that was interrupted, in whatever way and however often, ends as if nothing had happened."""

import random
import signal
import time

import pytest
import torch

from tests.smoke.survival import (
    AUTO,
    SEED,
    assert_same_checkpoints,
    assert_same_losses,
    launch,
    read_losses,
    train,
    write_tiny,
)

pytestmark = pytest.mark.smoke
SLOW = pytest.mark.slow
INTERRUPTED = 75  # exit code


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """Train without interruption, once for each runner and settings; return the last checkpoint."""
    runs = {}

    def run(runner, **settings):
        key = (runner, *sorted(settings.items()))
        if key not in runs:
            runs[key] = train(config, tmp_path_factory.mktemp("whole") / "run", runner, *SEED, **settings)
        return runs[key]

    return run


GROUPED = {
    "train_dataloader__sampler___delete_": True,
    "train_dataloader__sampler__type": "pallava.training.sampler.LengthSampler",
    "train_dataloader__sampler__batch_size": 2,
}


# Saves fall on multiples of the accumulation or not, on iterations of the chat (every 6), and on an epoch's end (12).
@pytest.mark.parametrize(
    ("runner", "accumulation", "save", "moments"),
    [
        pytest.param("plain", 3, 4, (6, 12, 18), marks=SLOW),
        pytest.param("plain", 1, 4, (4, 12, 24), marks=SLOW),
        pytest.param("plain-2", 3, 4, (12,), marks=SLOW),
        pytest.param("plain-2", 1, 4, (16,), marks=SLOW),
        pytest.param("zero1-2", 3, 4, (9, 12), marks=SLOW),
        pytest.param("zero1-2", 1, 4, (4,), marks=SLOW),
        pytest.param("zero2-2", 3, 4, (12,), marks=SLOW),
        pytest.param("zero2-2", 3, 4, (6, 18), marks=SLOW),
        pytest.param("zero2-2", 3, 6, (6,), marks=SLOW),
        pytest.param("zero2-2", 1, 4, (4, 12), marks=SLOW),
        pytest.param("zero2", 3, 4, (12,), marks=SLOW),
        pytest.param("bf16-2", 3, 4, (6, 12), marks=SLOW),
    ],
)
def test_resumes_exactly(config, uninterrupted, tmp_path, runner, accumulation, save, moments):
    whole = uninterrupted(runner, accumulation=accumulation, save=save)
    assert_resumes(config, whole, tmp_path, runner, moments, accumulation=accumulation, save=save)


def assert_resumes(config, whole, folder, runner, moments, **settings):
    for moment in moments:
        given = ("--resume", str(whole.with_name(f"iter_{moment}.pth")))
        last = train(config, folder / f"from_{moment}", runner, *given, **settings)
        assert_same_checkpoints(last, whole)
        assert_same_losses(last.parent, whole.parent)
        assert min(step for _, step in read_losses(last.parent)) == moment + 1


@pytest.mark.slow
def test_rows_grouped_by_length_resume_exactly(config, uninterrupted, tmp_path):
    settings = {"accumulation": 3, **GROUPED}
    assert_resumes(config, uninterrupted("plain", **settings), tmp_path, "plain", (9, 18), **settings)


@pytest.mark.slow
def test_the_weights_of_bf16_are_rounded(uninterrupted):
    """As on a GPU: float32 masters in the optimizer's shards, bf16 weights beside them."""
    whole = uninterrupted("bf16-2", accumulation=3, save=4)
    weights = torch.load(whole / "mp_rank_00_model_states.pt", weights_only=False)["module"].values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def draw_moments(number, seed):
    """Draw the progress of each run: steps until it is struck, and then a part of a second.

    The first comes while the model is loaded, the second before the first checkpoint.
    """
    rng = random.Random(seed)
    return [(-1, 2.0), (0, 0.0), *((rng.randint(1, 5), rng.uniform(0, 0.1)) for _ in range(number - 2))]


def strike(config, folder, runner, moments, how, **settings):
    """Run a command again and again, and strike it each time; return how often it ended by that."""
    ends = []
    for steps, seconds in moments:
        training = launch(config, folder, runner, *AUTO, **settings)
        training.wait_until(lambda steps=steps, training=training: training.has_begun(steps) or steps < 0)
        time.sleep(seconds)
        how(training)
        ends.append(training.end())
    return ends


KILLED = {"accumulation": 3, "save": 2, "chat": 8, "keep": 2}
MANY = {**KILLED, "steps": 240}


@pytest.mark.parametrize(
    ("runner", "settings", "moments"),
    [
        ("plain", KILLED, [(2, 0.0), (6, 0.02)]),
        pytest.param("plain", MANY, draw_moments(20, seed=11), marks=SLOW),
        pytest.param("zero2-2", MANY, draw_moments(20, seed=12), marks=SLOW),
    ],
)
def test_kills(config, uninterrupted, tmp_path, runner, settings, moments):
    whole = uninterrupted(runner, **settings)
    assert set(strike(config, tmp_path / "run", runner, moments, lambda run: run.kill(), **settings)) == {-9}
    last = train(config, tmp_path / "run", runner, *AUTO, **settings)
    assert_same_checkpoints(last, whole)
    assert_same_losses(last.parent, whole.parent)
    assert len([*last.parent.glob("iter_*")]) == 2
    assert not [*last.parent.glob(".*.unfinished")]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["plain", "zero2-2"])
def test_signals_again_and_again(config, uninterrupted, tmp_path, runner):
    whole = uninterrupted(runner, **MANY)
    moments = draw_moments(20, seed=13)[1:]
    ends = strike(
        config, tmp_path / "run", runner, moments, lambda run: run.process.send_signal(signal.SIGTERM), **MANY
    )
    assert set(ends) <= {INTERRUPTED, 0}
    assert ends[0] == ends[1] == INTERRUPTED
    assert "Traceback" not in (tmp_path / "run.log").read_text()
    last = train(config, tmp_path / "run", runner, *AUTO, **MANY)
    assert_same_checkpoints(last, whole)
    assert_same_losses(last.parent, whole.parent)
