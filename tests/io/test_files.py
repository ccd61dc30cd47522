"""Files and folders that appear whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from pallava.io import files
from pallava.io.files import whole_file, whole_folder, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_writing(tmp_path):
    write_text(tmp_path / "text", "Gewebe \u00b5m\n")
    write_bytes(tmp_path / "bytes", b"\0\1")
    write_json(tmp_path / "json", {"b": 1, "a": [2]})
    assert (tmp_path / "text").read_bytes() == "Gewebe \u00b5m\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"
    assert json.loads((tmp_path / "json").read_text()) == {"b": 1, "a": [2]}
    assert names(tmp_path) == ["bytes", "json", "text"]


def test_nothing_is_seen_before_the_end(tmp_path):
    (tmp_path / "file").write_text("old")
    with whole_file(tmp_path / "file") as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("where", ["body", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, where):
    (tmp_path / "file").write_text("old")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    if where == "replace":
        monkeypatch.setattr(Path, "replace", full_disk)

    def write():
        with whole_file(tmp_path / "file") as file:
            file.write("new")
            if where == "body":
                full_disk()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_two_writers_do_not_collide(tmp_path):
    with whole_file(tmp_path / "file") as first, whole_file(tmp_path / "file") as second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "file").read_text() == "first"  # the outer context ends last
    assert names(tmp_path) == ["file"]


def test_a_folder(tmp_path):
    with whole_folder(tmp_path / "new" / "folder") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "new" / "folder").exists()
    assert names(tmp_path / "new") == ["folder"]
    assert names(tmp_path / "new" / "folder") == ["a"]


def test_an_older_folder_stays_unless_it_is_to_be_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "folder"):
        pytest.fail("opened")
    with whole_folder(tmp_path / "folder", replace=True) as folder:
        (folder / "new").touch()
        assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("where", ["body", "rename"])
def test_a_failure_leaves_the_old_folder_and_no_litter(tmp_path, monkeypatch, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    rename = Path.rename
    if where == "rename":  # the old folder has been moved aside, and the new one cannot take its place
        monkeypatch.setattr(Path, "rename", lambda a, b: full_disk() if a.name.endswith("finished") else rename(a, b))

    def write():
        with whole_folder(tmp_path / "folder", replace=True) as folder:
            (folder / "new").touch()
            if where == "body":
                full_disk()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_of_two_runs_that_make_one_folder_the_first_wins(tmp_path):
    def write(name, before):
        with whole_folder(tmp_path / "folder") as folder:
            (folder / name).touch()
            before()

    with pytest.raises(FileExistsError, match="folder"):  # on which callers take the first one's
        write("second", lambda: write("first", lambda: None))
    assert names(tmp_path / "folder") == ["first"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_of_many_files_is_synchronized_at_once(tmp_path: Path, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(files, "_MANY_FILES", 2)
    monkeypatch.setattr(files.os, "sync", lambda: called.append(True))
    for count in (2, 3):
        with whole_folder(tmp_path / str(count)) as folder:
            for number in range(count):
                (folder / str(number)).touch()
        assert len(list((tmp_path / str(count)).iterdir())) == count
        assert len(called) == count - 2


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.posix
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_errors_name_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as missing:
        write_text(tmp_path / "missing" / "file", "")
    assert missing.value.filename == str(tmp_path / "missing" / "file")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space") as full:
        write_text(tmp_path / "file", "")
    assert full.value.filename == str(tmp_path / "file")


def test_a_folder_takes_the_place_of_an_empty_one_on_windows(tmp_path: Path, monkeypatch) -> None:
    """Windows renames no folder over another, opens none, and synchronizes a file that is open for writing."""
    replace, opened = Path.replace, os.open

    def replace_as_there(self: Path, target: Path) -> Path:
        if target.is_dir():
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return replace(self, target)

    def open_as_there(path: Path, flags: int, *mode: int) -> int:
        if path.is_dir() or not flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(files, "_IS_WINDOWS", True)
    monkeypatch.setattr(Path, "replace", replace_as_there)
    monkeypatch.setattr(os, "open", open_as_there)
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
    assert names(tmp_path / "out") == ["inner"]
    with whole_folder(tmp_path / "out", replace=True) as folder:
        write_text(folder / "new", "new")
    assert names(tmp_path / "out") == ["new"]
