"""The whole command with open_clip's own trainer: one process, two, interrupted."""

import dataclasses
import random
import subprocess
import time
from pathlib import Path

import open_clip
import psutil
import pytest
import torch

from pallava.io.launch import read_launch
from pallava.model import load_image_processor, load_plip
from pallava.pretraining.pairs import write_pairs
from pallava.pretraining.run import Pretraining, _parse, _words
from tests.tiny.pretraining import (
    WHOLE_PICTURE,
    command,
    dye_accuracy,
    environment,
    run,
    save_dyed_pairs,
    save_pairs,
    steps_taken,
)

PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.mark.smoke
def test_from_pairs_to_an_encoder(tmp_path: Path) -> None:
    save_pairs(tmp_path, 8)
    options = ("--batch-size", "4", "--epochs", "2", "--lock-text", "--image-mean", "0.7", "0.6", "0.5")
    done = run(command(tmp_path, "out", *options, before=("--augment",)))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    encoder = load_plip(out / "encoder")
    open_clip.add_model_config(out / "open_clip.json")
    whole = open_clip.create_model("open_clip", pretrained=str(out / "open_clip.pt")).eval()
    with torch.no_grad():
        pooled = encoder(PIXELS).pooler_output @ whole.visual.proj
        torch.testing.assert_close(pooled, whole.visual(PIXELS), atol=1e-5, rtol=0)
    processor = load_image_processor(out / "encoder")
    assert (processor.image_mean, processor.crop_size) == ([0.7, 0.6, 0.5], {"height": 32, "width": 32})
    assert processor.do_center_crop
    assert steps_taken(out) == 4


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("loss", [(), ("--siglip",)])
def test_two_processes_take_the_step_of_one(tmp_path: Path, loss: tuple[str, ...]) -> None:
    save_pairs(tmp_path, 8)
    paths = [tmp_path / name for name in ("pairs.json", "images", "out")]
    write_pairs(*paths)
    settings = Pretraining(*paths, model=str(tmp_path / "tiny.json"), pretrained="")
    records = []
    for processes in (1, 2):
        options = ("--batch-size", str(8 // processes), "--epochs", "1", "--workers", "0", *WHOLE_PICTURE, *loss)
        told = dataclasses.replace(settings, options=options)
        words = _words(told, _parse(told), 1)[3:]  # without the module and the folder
        record = tmp_path / f"{processes}.pt"
        probe = [str(Path(__file__).with_name("probe.py")), str(record), str(tmp_path / "out")]
        variables = environment(processes)
        launch = [*read_launch(variables).command, *probe, *words, "--name", f"probe{processes}"]
        done = subprocess.run(launch, env=variables, capture_output=True, text=True, timeout=300, check=False)
        assert record.is_file(), done.stderr[-3000:]
        records.append(torch.load(record))
    one, two = records
    assert one.keys() == two.keys()
    assert len(one) > 30
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-4, msg=name)
    assert max(value.abs().max() for value in one.values()) > 0.1


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_it_takes_as_many_steps_and_learns_as_much(tmp_path: Path, processes: int) -> None:
    save_dyed_pairs(tmp_path, 64)
    held_out = save_dyed_pairs(tmp_path / "held_out", 200, seed=1)
    options = ("--batch-size", str(8 // processes), "--epochs", "40", "--log-every-n-steps", "1", "--lr", "1e-3")
    words = command(tmp_path, "out", *options)
    latest = tmp_path / "out" / "run" / "checkpoints" / "epoch_latest.pt"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(words, env=environment(processes), **silent)
    while not latest.is_file():
        assert started.poll() is None, "it ended before its first epoch did"
        time.sleep(0.05)
    time.sleep(random.random())
    children = psutil.Process(started.pid).children(recursive=True)
    assert len(children) == (1 if processes == 1 else 1 + processes)
    started.kill()  # itself alone: those it has started must end by themselves
    started.wait()
    patience = time.monotonic() + 30
    while any(map(is_alive, children)):
        assert time.monotonic() < patience, "the trainer goes on alone"
        time.sleep(0.05)
    assert 0 < steps_taken(tmp_path / "out") < 320
    done = run(words, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "=> resuming checkpoint" in done.stderr
    assert steps_taken(tmp_path / "out") == 320
    assert run(words, processes).stderr.endswith("exists already\n")

    whole = run(command(tmp_path, "whole", *options), processes)
    assert whole.returncode == 0, whole.stderr[-3000:]
    resumed, uninterrupted = (dye_accuracy(tmp_path / name, held_out, tmp_path / "c") for name in ("out", "whole"))
    assert uninterrupted > 0.9
    assert abs(resumed - uninterrupted) <= 0.03


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("processes", [1, 2])
def test_from_shards_with_readers_and_siglip(tmp_path: Path, processes: int) -> None:
    """Each of the readers finds just one batch in its shard."""
    save_pairs(tmp_path, 8)
    options = ("--batch-size", str(4 // processes), "--epochs", "2", "--siglip")
    words = command(tmp_path, "out", *options, before=("--shards", str(2 * processes)))
    words[words.index("--workers") + 1] = "2"
    done = run(words, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps_taken(tmp_path / "out") == 4
    open_clip.add_model_config(tmp_path / "out" / "open_clip.json")
    whole = open_clip.create_model("open_clip", pretrained=str(tmp_path / "out" / "open_clip.pt"))
    assert whole.logit_bias is not None


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("processes", [1, 2])
def test_mistakes_that_only_the_trainer_finds(tmp_path: Path, processes: int) -> None:
    save_pairs(tmp_path, 8)
    write_pairs(tmp_path / "pairs.json", tmp_path / "images", tmp_path / "out")
    broken = tmp_path / "images" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-60])  # after it was found whole
    words = command(tmp_path, "out", "--batch-size", "4", "--epochs", "2", "--workers", "1")
    done = run(words, processes)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1].startswith("error: cannot read image ")
    assert "3.png" in done.stderr.splitlines()[-1]
    done = run(command(tmp_path, "third", "--batch-size", "4", "--lr-scheduler", "none"), processes)
    assert done.returncode == 1
    assert "Unknown scheduler, none" in done.stderr[done.stderr.rindex("error: open_clip_train ended") :]
