"""A disk that gets full, and checkpoints that are damaged, in whole trainings."""

import re
import resource
import shutil

import pytest

from tests.smoke.survival import (
    AUTO,
    SEED,
    assert_same_checkpoints,
    assert_same_losses,
    launch,
    train,
    write_tiny,
)

pytestmark = [pytest.mark.smoke, pytest.mark.slow]  # tests/training/test_checkpoints.py has the quick forms
SETTINGS = {"accumulation": 3, "save": 6, "keep": 5}
LARGEST_FILE = 500_000  # bytes; a checkpoint has some megabytes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))


def sizes(checkpoint):
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def only_error(training, code=1) -> str:
    assert training.end() == code, training.output()[-3000:]
    assert "Traceback" not in training.output()
    lines = training.output().splitlines()
    (error,) = {line.partition("error: ")[2] for line in lines if re.match(r"(\[rank\d\]: )?error: ", line)}
    assert len(error) <= 300
    return error


@pytest.mark.parametrize("runner", ["plain", "zero2"])
def test_the_last_good_checkpoint_outlives_a_full_disk(config, tmp_path, runner):
    whole = train(config, tmp_path / "whole", runner, *SEED, **SETTINGS)
    good = tmp_path / "run" / "iter_12.pth"
    good.parent.mkdir()
    if whole.is_dir():
        shutil.copytree(whole.with_name("iter_12.pth"), good)
    else:
        shutil.copy(whole.with_name("iter_12.pth"), good)
    before = sizes(good)
    training = launch(config, good.parent, runner, *AUTO, limits=limit_files, **SETTINGS)
    error = only_error(training)
    assert all(fact in error for fact in ("iter_18.pth", "iter_12.pth", "--resume auto"))
    assert sizes(good) == before
    assert [path.name for path in good.parent.glob("*iter_*")] == ["iter_12.pth"]
    last = train(config, good.parent, runner, *AUTO, **SETTINGS)
    assert_same_checkpoints(last, whole)
    assert_same_losses(last.parent, whole.parent)


@pytest.mark.parametrize("runner", ["plain", "zero2-2"])
def test_a_damaged_checkpoint_is_refused_or_left_out(config, tmp_path, runner):
    whole = train(config, tmp_path / "whole", runner, *SEED, **SETTINGS)
    shutil.copytree(whole.parent, tmp_path / "run")
    damaged = tmp_path / "run" / whole.name
    files = sorted(damaged.glob("*_optim_states.pt")) or [damaged]
    files[-1].write_bytes(files[-1].read_bytes()[:-1000])
    error = only_error(launch(config, tmp_path / "other", runner, "--resume", str(damaged), **SETTINGS))
    assert whole.name in error
    assert not (tmp_path / "other" / "probe_0.jsonl").exists()
    (tmp_path / "run" / "last_checkpoint").write_text("")
    last = train(config, tmp_path / "run", runner, *AUTO, **SETTINGS)
    assert "resuming from" in (tmp_path / "run.log").read_text()
    assert_same_checkpoints(last, whole)
    assert_same_losses(last.parent, whole.parent)
