"""Weights that DeepSpeed rounded come back as the float32 masters in its shards, in every bit, or a warning says no."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pallava.errors import PallavaError
from pallava.io.launch import free_port
from pallava.model.weights import read_weights
from tests.tiny.zero import SETTINGS

ROOT = Path(__file__).parents[2]
STATES = "mp_rank_00_model_states.pt"
PROCESSES = (1, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of both stages and of our settings, by one process and by three."""
    folders = {}
    for processes in PROCESSES:
        folders[processes] = folder = tmp_path_factory.mktemp(f"zero{processes}")
        launch = (f"--nproc_per_node={processes}", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
        command = [sys.executable, "-m", "pallava.io.launch", *launch, "-m", "tests.tiny.zero", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


def rounded(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / STATES, weights_only=False)["module"]


@pytest.mark.parametrize("tag", SETTINGS)
@pytest.mark.parametrize("processes", PROCESSES)
def test_masters_are_those_that_deepspeed_joins(written: dict[int, Path], processes: int, tag: str) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = written[processes] / tag
    own = get_fp32_state_dict_from_zero_checkpoint(str(written[processes]), tag, exclude_frozen_parameters=True)
    for source in (folder, folder / STATES, next(folder.glob("*_optim_states.pt"))):
        found = read_weights(source)
        assert found.keys() == own.keys() == rounded(folder).keys()
        assert {(value.dtype, value.requires_grad) for value in found.values()} == {(torch.float32, False)}
        assert all(torch.equal(found[key], own[key]) for key in own)
    for key, value in rounded(folder).items():
        assert not torch.equal(found[key], value.float()), f"{key} was not rounded, and the test shows nothing"
        assert torch.equal(found[key].to(torch.bfloat16), value)
        assert found[key].untyped_storage().nbytes() == 4 * value.numel()


@pytest.fixture
def copy(written: dict[int, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[3] / "stage2", tmp_path / "iter_2.pth"))


def shard(folder: Path, rank: int) -> Path:
    return folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def edit(path: Path, change: object) -> None:
    content = torch.load(path, weights_only=False)
    change(content)  # type: ignore[operator]
    torch.save(content, path)


def test_shards_of_float16_have_another_name(copy: Path) -> None:
    found = read_weights(copy)
    for rank in range(3):
        shard(copy, rank).rename(shard(copy, rank).with_name(shard(copy, rank).name.removeprefix("bf16_")))
    assert all(torch.equal(value, found[key]) for key, value in read_weights(copy).items())


MISSING = {
    "one": (lambda folder: shard(folder, 1).unlink(), "expected 3 shards of the optimizer, got 2"),
    "all": (lambda folder: [shard(folder, rank).unlink() for rank in range(3)], "no shards"),
    "one too many": (lambda folder: shutil.copy(shard(folder, 2), shard(folder, 3)), "expected 3 shards"),
    "another step's": (lambda folder: edit(shard(folder, 0), age), "more than the rounding, first in "),
    "foreign": (lambda folder: torch.save({"a": 1}, shard(folder, 0)), "stage 1 or 2 (KeyError)"),
    "shorter": (lambda folder: edit(shard(folder, 2), shorten), "stage 1 or 2 (RuntimeError)"),
    "huge": (lambda folder: edit(shard(folder, 2), inflate), "stage 1 or 2 (TypeError)"),
    "no shapes": (lambda folder: edit(folder / STATES, lambda content: content.pop("param_shapes")), "(KeyError)"),
}


def groups(content: dict) -> list[Tensor]:
    return content["optimizer_state_dict"]["single_partition_of_fp32_groups"]


def age(content: dict) -> None:
    groups(content)[0] = groups(content)[0].detach() * 1.5


def shorten(content: dict) -> None:
    groups(content)[0] = groups(content)[0][:0].clone()


def inflate(content: dict) -> None:
    groups(content)[0] = torch.ones(1).expand(1 << 40)


@pytest.mark.parametrize("what", MISSING)
def test_rounded_weights_are_read_with_a_warning(copy: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    change, fact = MISSING[what]
    change(copy)
    with caplog.at_level(logging.WARNING):
        found = read_weights(copy)
    assert all(torch.equal(found[key], value) for key, value in rounded(copy).items())
    (record,) = caplog.records
    for part in (str(copy), "bfloat16", fact):
        assert part in record.getMessage()


def test_a_damaged_shard_is_named(copy: Path) -> None:
    shard(copy, 1).write_bytes(shard(copy, 1).read_bytes()[:500])
    with pytest.raises(PallavaError, match=shard(copy, 1).name):
        read_weights(copy)


def test_float32_weights_need_no_shards(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(copy / STATES, lambda content: content.update(module={k: v.float() for k, v in content["module"].items()}))
    for rank in range(3):
        shard(copy, rank).unlink()
    assert {value.dtype for value in read_weights(copy).values()} == {torch.float32}
    assert not caplog.records
