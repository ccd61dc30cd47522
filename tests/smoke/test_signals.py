"""The first signal ends a training with a checkpoint and an exit code of its own, a second one at once."""

import os
import signal
import time

import pytest

from pallava.training.checkpoints import is_whole
from pallava.training.interrupts import EXIT_CODE
from tests.smoke.survival import AUTO, SEED, Training, launch, train, write_tiny

pytestmark = pytest.mark.smoke
SLOW = pytest.mark.slow
SETTINGS = {"accumulation": 3, "save": 1000}
LONG = 3000  # iterations, which nobody waits for
MOMENT = {"default_hooks__moment__type": "tests.tiny.moments.Moment"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def to_launcher(training: Training, number: int) -> None:
    training.process.send_signal(number)


def to_group(training: Training, number: int) -> None:
    """As a terminal does at Ctrl-C."""
    os.killpg(training.process.pid, number)


def to_all(training: Training, number: int) -> None:
    """As Slurm does: the loader's workers get it, too."""
    for process in reversed(training.tree()):
        process.send_signal(number)


def start(config, folder, runner: str, kind: str, seconds: float = 2.0) -> Training:
    """Start a training and wait for a moment of it."""
    settings = {**SETTINGS, "steps": LONG, "chat": 6 if kind == "chat" else 0, "save": 6 if kind == "save" else 5000}
    if kind != "train":
        settings |= {**MOMENT, "default_hooks__moment__kind": kind, "default_hooks__moment__iteration": 6}
        settings["default_hooks__moment__seconds"] = seconds
    training = launch(config, folder, runner, *SEED, **settings)
    moment = folder / "moment"
    assert training.wait_until(lambda: training.has_begun(9) if kind == "train" else moment.exists())
    time.sleep(0.3)
    return training


@pytest.mark.parametrize(
    ("runner", "kind", "number", "send"),
    [
        pytest.param("plain", "save", signal.SIGTERM, to_launcher, marks=SLOW),
        ("zero2-2", "chat", signal.SIGUSR1, to_launcher),
        pytest.param("plain", "train", signal.SIGTERM, to_launcher, marks=SLOW),
        pytest.param("plain", "train", signal.SIGINT, to_group, marks=SLOW),
        pytest.param("plain", "train", signal.SIGUSR1, to_all, marks=SLOW),
        pytest.param("plain", "chat", signal.SIGINT, to_group, marks=SLOW),
        pytest.param("plain", "chat", signal.SIGTERM, to_all, marks=SLOW),
        pytest.param("plain-2", "train", signal.SIGTERM, to_launcher, marks=SLOW),
        pytest.param("plain-2", "chat", signal.SIGTERM, to_all, marks=SLOW),
        pytest.param("zero2-2", "train", signal.SIGTERM, to_launcher, marks=SLOW),
        pytest.param("zero2-2", "train", signal.SIGINT, to_group, marks=SLOW),
        pytest.param("zero2-2", "train", signal.SIGUSR1, to_all, marks=SLOW),
        pytest.param("zero2-2", "save", signal.SIGINT, to_group, marks=SLOW),
        pytest.param("zero2-2", "save", signal.SIGTERM, to_all, marks=SLOW),
    ],
)
def test_the_first_signal_saves_and_ends(config, tmp_path, runner, kind, number, send):
    training = start(config, tmp_path / "run", runner, kind)
    send(training, number)
    assert training.end(limit=30) == EXIT_CODE
    output = training.output()
    assert "Traceback" not in output
    assert f"stopped by {number.name} after iteration" in output
    assert output.count("Saving checkpoint") == 1
    (checkpoint,) = (tmp_path / "run").glob("iter_*")
    assert is_whole(checkpoint)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == str(checkpoint)
    step = int(checkpoint.stem.removeprefix("iter_"))
    assert step == 6 if kind != "train" else step % 3 == 0
    if (runner, kind) in {("plain", "save"), ("zero2-2", "train")}:
        train(config, tmp_path / "run", runner, *AUTO, **{**SETTINGS, "steps": step + 2, "chat": 0})


@pytest.mark.parametrize(
    ("runner", "send"),
    [
        pytest.param("plain", to_launcher, marks=SLOW),
        pytest.param("zero2-2", to_launcher, marks=SLOW),
        pytest.param("zero2-2", to_all, marks=SLOW),
    ],
)
def test_a_second_signal_ends_at_once(config, tmp_path, runner, send):
    training = start(config, tmp_path / "run", runner, "save", seconds=60)
    send(training, signal.SIGTERM)
    time.sleep(1.5)
    assert training.process.poll() is None
    send(training, signal.SIGTERM)
    assert training.end(limit=10) == 128 + signal.SIGTERM
    assert "Traceback" not in training.output()
    assert not [*(tmp_path / "run").glob("iter_*")]
