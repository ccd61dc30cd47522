"""Checkpoints are whole or absent: a kill between any two file operations, a full disk, and damage."""

import io
import logging
import os
import resource
import shutil
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.runner import save_checkpoint as save_with_mmengine

from pallava.errors import PallavaError
from pallava.training.checkpoints import MANIFEST, is_whole, newest_whole, read_meta
from pallava.training.failures import resume_newest
from pallava.training.hooks import checkpoint as checkpoint_hook
from pallava.training.hooks.checkpoint import WholeCheckpointHook

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "tests.half_written"}
SHARDS = ("mp_rank_00_model_states.pt", *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)))


def write(path: Path, content: object) -> None:
    data = io.BytesIO()
    torch.save(content, data)
    with path.open("wb") as file:
        file.write(data.getvalue()[: data.tell() // 2])
        file.flush()
        sys.audit("tests.half_written", str(path))
        file.write(data.getvalue()[data.tell() // 2 :])


def write_shards(folder: Path, content: object) -> None:
    folder.mkdir()
    for name in SHARDS:
        write(folder / name, content)


WRITERS = {"file": write, "folder": write_shards}


def make_runner(folder: Path, step: int, kind: str = "file", value: float = 0.0, kept: tuple[int, ...] = ()):
    """Return the parts of a runner that the hook sees, before the last iteration of a step."""
    hub = MessageHub.get_instance(f"checkpoints-{folder.name}-{step}-{value}")
    hub.update_info("keep_ckpt_ids", list(kept))

    def save_checkpoint(out_dir, filename, meta, **_):
        content = {"meta": {**meta, "seed": 3}, "value": torch.full((100,), value)}
        WRITERS[kind](Path(out_dir, filename), content)

    return SimpleNamespace(
        iter=step - 1,
        epoch=0,
        max_iters=100,
        logger=logging.getLogger("checkpoints"),
        message_hub=hub,
        model=torch.nn.Linear(2, 2),
        optim_wrapper=SimpleNamespace(_accumulative_counts=1),
        train_dataloader=SimpleNamespace(batch_size=2),
        work_dir=str(folder),
        save_checkpoint=save_checkpoint,
    )


def save(folder: Path, step: int, keep: int = -1, **options) -> None:
    """Start, or resume, a training that writes a checkpoint."""
    runner = make_runner(folder, step, **options)
    hook = WholeCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=keep)
    hook.before_train(runner)
    hook.save(runner)


def names(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {checkpoint_hook.LOCK})


def read(path: Path) -> float:
    files = [path / name for name in SHARDS] if path.is_dir() else [path]
    values = [torch.load(file, weights_only=True)["value"] for file in files]
    assert len({tuple(value.tolist()) for value in values}) == 1
    assert len(values[0]) == 100
    return values[0][0].item()


def killed_before(number: int, folder: Path, act) -> bool:
    """Act in a process that is killed before its n-th file operation; return whether that came."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    seen = count(1)

    def kill(event: str, arguments: tuple) -> None:
        is_ours = event in OPERATIONS and any(str(folder) in str(argument) for argument in arguments)
        if is_ours and next(seen) == number:
            os._exit(9)

    sys.addaudithook(kill)
    try:
        act()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("is_repeated", [False, True], ids=["new", "same-name"])
@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_between_any_two_file_operations(tmp_path, kind, keep, is_repeated):
    """The old or the new checkpoint is there, and the next save leaves nothing else; so at each of the operations."""
    new, kept = (4, ()) if is_repeated else (5, (3, 4)[-keep:])
    for number in count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        for step in (4,) if is_repeated else (3, 4)[-keep:]:
            save(folder, step, kind=kind, value=1.0)
        is_killed = killed_before(
            number,
            folder,
            lambda folder=folder: save(folder, new, keep=keep, kind=kind, value=2.0, kept=kept),
        )
        note = folder / "last_checkpoint"
        assert not note.exists() or is_whole(Path(note.read_text()))
        found = newest_whole(folder)
        assert found is not None
        value = read(found)
        assert value == 2.0 if found.name == "iter_5.pth" else value in (1.0, 2.0)
        assert read_meta(found)["iter"] == int(found.name[5])
        steps = {int(path.name[5]) for path in folder.glob("iter_*")}
        save(folder, 6, keep=keep, kind=kind, value=3.0, kept=tuple(sorted(steps)))
        expected = [*sorted(steps), 6][-keep:]
        assert names(folder) == [*(f"iter_{step}.pth" for step in expected), note.name]
        assert note.read_text() == str(folder / "iter_6.pth")
        assert read(folder / "iter_6.pth") == 3.0
        if not is_killed:
            break
    assert number > {"file": 5, "folder": 10}[kind]
    assert value == 2.0


def test_a_file_takes_the_place_of_a_folder_and_back(tmp_path):
    for value, kind in enumerate(("folder", "file", "folder")):
        save(tmp_path, 4, kind=kind, value=float(value))
        assert read(newest_whole(tmp_path)) == value
    assert names(tmp_path) == ["iter_4.pth", "last_checkpoint"]


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=71)
    monkeypatch.setattr(checkpoint_hook.shutil, "disk_usage", lambda _: usage)
    hook = WholeCheckpointHook(interval=1, by_epoch=False)
    with pytest.raises(PallavaError, match=str(tmp_path)):  # 6 weights and 2 states of each, in float32: 72 bytes
        hook.before_train(make_runner(tmp_path, 1))
    usage = usage._replace(free=72)
    hook.before_train(make_runner(tmp_path, 1))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:664] . x")]
)
def test_a_full_disk_leaves_the_last_good_one(tmp_path, error):
    save(tmp_path, 4, value=1.0)
    runner = make_runner(tmp_path, 5, kept=(4,))

    def fail(out_dir, filename, **_):
        Path(out_dir, filename).write_bytes(b"part")
        raise error

    runner.save_checkpoint = fail
    hook = WholeCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
    hook.before_train(runner)
    with pytest.raises(PallavaError, match=r"iter_5.pth.*'iter_4.pth'"):
        hook.save(runner)
    assert names(tmp_path) == ["iter_4.pth", "last_checkpoint"]
    assert read(newest_whole(tmp_path)) == 1.0


def save_with_torch(path: Path, content: object) -> None:
    """Write as DeepSpeed does."""
    path.mkdir()
    torch.save(content, path / SHARDS[0])


@pytest.mark.parametrize("write_large", [lambda path, content: save_with_mmengine(content, str(path)), save_with_torch])
def test_a_file_that_cannot_be_written_to_its_end(tmp_path, write_large, capfd):
    save(tmp_path, 4, value=1.0)

    def save_large():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        runner = make_runner(tmp_path, 5, kept=(4,))
        content = {"value": torch.rand(100_000)}
        runner.save_checkpoint = lambda out_dir, filename, **_: write_large(Path(out_dir, filename), content)
        hook = WholeCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
        hook.before_train(runner)
        try:
            hook.save(runner)
        except PallavaError as error:
            os.write(1, str(error).encode())
            os._exit(3)

    if not (pid := os.fork()):
        save_large()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    sentence = capfd.readouterr().out
    assert "iter_5.pth'" in sentence
    assert "enforce" not in sentence
    assert "'iter_4.pth'" in sentence
    assert names(tmp_path) == ["iter_4.pth", "last_checkpoint"]
    assert read(newest_whole(tmp_path)) == 1.0


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "cut file": ("file", cut),
    "empty file": ("file", lambda path: path.write_bytes(b"")),
    "cut shard": ("folder", lambda path: cut(path / SHARDS[2])),
    "missing shard": ("folder", lambda path: (path / SHARDS[2]).unlink()),
    "cut list": ("folder", lambda path: (path / MANIFEST).write_text("{")),
    "empty folder": ("folder", lambda path: [file.unlink() for file in path.iterdir()]),
    "broken link": ("file", lambda path: (path.unlink(), path.symlink_to("nowhere"))),
    "empty last_checkpoint": ("file", lambda path: path.with_name("last_checkpoint").write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_one_is_resumed(tmp_path, damage):
    kind, act = DAMAGES[damage]
    for step in (9, 10):
        save(tmp_path, step, kind=kind)
    act(tmp_path / "iter_10.pth")
    expected = 10 if damage == "empty last_checkpoint" else 9
    assert newest_whole(tmp_path) == tmp_path / f"iter_{expected}.pth"
    config = Config({"resume": True, "load_from": "auto", "work_dir": str(tmp_path), "randomness": {"seed": 1}})
    resume_newest(config)
    assert (config.resume, config.load_from) == (True, str(tmp_path / f"iter_{expected}.pth"))
    assert config.randomness.seed == 3, "the order of the data is that of the interrupted run"


def test_a_list_is_not_needed_but_kept(tmp_path):
    """mmengine alone writes folders without one."""
    save(tmp_path, 1, kind="folder")
    assert is_whole(tmp_path / "iter_1.pth")
    (tmp_path / "iter_1.pth" / MANIFEST).unlink()
    assert is_whole(tmp_path / "iter_1.pth")
    cut(tmp_path / "iter_1.pth" / SHARDS[0])
    assert not is_whole(tmp_path / "iter_1.pth")


def test_without_any_whole_one_the_training_begins(tmp_path):
    (tmp_path / "iter_4.pth").write_bytes(b"")
    config = Config({"resume": True, "load_from": "auto", "work_dir": str(tmp_path)})
    resume_newest(config)
    assert (config.resume, config.load_from) == (False, None)


def test_two_trainings_do_not_share_a_folder(tmp_path):
    hooks = [WholeCheckpointHook(interval=1, by_epoch=False) for _ in range(3)]
    runner = make_runner(tmp_path, 1)
    hooks[0].before_train(runner)
    with pytest.raises(PallavaError, match=str(tmp_path)):
        hooks[1].before_train(runner)
    hooks[0].after_train(runner)
    hooks[2].before_train(runner)
