"""Checkpoints on the disk: whole or absent, the newest of a run, and what they say of the launch that wrote them.

A checkpoint is a file in PyTorch's format, or a DeepSpeed folder of such files. It is written under a hidden name,
synchronized to the disk and renamed; a folder also lists its files, since a copy may lack some.
"""

import json
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pallava.errors import PallavaError
from pallava.io.files import synchronize, temporary_beside, write_json, write_text
from pallava.training.compat import load_checkpoint

MANIFEST = "checkpoint.json"  # in a DeepSpeed folder: its files and their sizes
_NOTE = "last_checkpoint"
_UNFINISHED = ".unfinished"
_FLOAT32 = 4  # bytes
_NUMBER = re.compile(r"(?:iter|epoch)_(\d+)(?:\.pth)?")


def checkpoint_bytes(num_trained: int, dtype: torch.dtype, *, has_deepspeed: bool) -> int:
    """Return the size of a checkpoint of so many trained weights: themselves and AdamW's two states in float32.

    DeepSpeed adds its float32 weights.
    """
    return num_trained * ((dtype.itemsize + _FLOAT32 if has_deepspeed else _FLOAT32) + 2 * _FLOAT32)


def unfinished_name(name: str) -> str:
    """Return the name that a checkpoint has until it is whole; every process of a training knows it."""
    return f".{name}{_UNFINISHED}"


def finish(folder: Path, name: str, work_dir: Path) -> Path:
    """Give a checkpoint that is written its name, synchronized to the disk; then note it as the newest of its run.

    `last_checkpoint` in the work directory is where mmengine and `pallava convert` look for the newest.
    """
    unfinished, path = folder / unfinished_name(name), folder / name
    if unfinished.is_dir():
        sizes = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
        write_json(unfinished / MANIFEST, {"files": sizes})
    synchronize(unfinished)
    if path.exists() and (path.is_dir() or unfinished.is_dir()):  # of an earlier run, and cannot be replaced in one go
        (work_dir / _NOTE).unlink(missing_ok=True)  # it may name this one; `newest_whole` knows what a kill leaves
        remove(path)
    unfinished.replace(path)
    synchronize(folder, recursive=False)
    write_text(work_dir / _NOTE, str(path))
    return path


def remove(path: Path) -> None:
    """Remove a checkpoint; what a kill leaves of it does not look like one."""
    if path.is_dir():
        hidden = temporary_beside(path)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left of checkpoints; to be called before the first is written."""
    for leftover in folder.glob(unfinished_name("*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete: files with their ends, and all that a folder lists."""
    if not path.is_dir():
        return path.is_file() and zipfile.is_zipfile(path)
    files = [file for file in path.iterdir() if file.suffix == ".pt"]
    sizes = _listed(path) or {}  # empty: written by mmengine alone
    listed = all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items())
    return listed and bool(files) and all(map(zipfile.is_zipfile, files))


def _listed(folder: Path) -> dict[str, int] | None:
    """Return the files of a folder and their sizes by its list; None if it has none."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {MANIFEST: -1}  # a list that is damaged fits no file


def newest_whole(work_dir: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, by its number of iterations; None without any."""
    _name_finished(work_dir)
    found = {path: match for path in work_dir.glob("*") if (match := _NUMBER.fullmatch(path.name))}
    newest_first = sorted(found, key=lambda path: int(found[path][1]), reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def _name_finished(work_dir: Path) -> None:
    """Give a folder its name that a kill kept from it, between the removal of an older one and the renaming."""
    for unfinished in work_dir.glob(unfinished_name("*")):
        path = work_dir / unfinished.name.removeprefix(".").removesuffix(_UNFINISHED)
        with suppress(OSError):  # another process of this training did it
            if _NUMBER.fullmatch(path.name) and not path.exists() and _listed(unfinished) and is_whole(unfinished):
                unfinished.rename(path)


def read_meta(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of its run: seed, iteration, launch; its weights stay on the disk.

    Raises:
        PallavaError: It is damaged, or no checkpoint of a training.
    """
    file = next(path.glob("*model_states.pt"), None) if path.is_dir() else path
    if file is None:
        raise PallavaError(f"'{path}' is not a checkpoint: it has no *_model_states.pt; give another one")
    content = load_checkpoint(file, "cpu", mmap=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or "seed" not in meta:
        raise PallavaError(
            f"'{path}' is not a checkpoint of a training; resume from one, or load it by model.pretrained_pth"
        )
    return meta
