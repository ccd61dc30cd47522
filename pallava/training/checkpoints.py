"""Checkpoints on the disk: whole or absent, the newest of a run, and what they say of the launch that wrote them.

A checkpoint is a file in PyTorch's format, or a DeepSpeed folder of such files. It is written under a hidden name,
synchronized to the disk and renamed; a folder also lists its files, since a copy may lack some.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from pallava.errors import PallavaError
from pallava.io.files import synchronize, temporary_beside, write_json, write_text
from pallava.model.weights import unreadable
from pallava.training.compat import admitted_globals

MANIFEST = "checkpoint.json"  # in a DeepSpeed folder: its files and their sizes
_FLOAT32 = 4  # bytes
_NUMBER = re.compile(r"(?:iter|epoch)_(\d+)(?:\.pth)?")


def checkpoint_bytes(num_trained: int, dtype: torch.dtype, *, has_deepspeed: bool) -> int:
    """Return the size of a checkpoint of so many trained weights: themselves and AdamW's two states in float32.

    DeepSpeed adds its float32 weights.
    """
    return num_trained * ((dtype.itemsize + _FLOAT32 if has_deepspeed else _FLOAT32) + 2 * _FLOAT32)


def unfinished_name(name: str) -> str:
    """Return the name that a checkpoint has until it is whole; every process of a training knows it."""
    return f".{name}.unfinished"


def finish(folder: Path, name: str) -> Path:
    """Give a checkpoint that is written its name, synchronized to the disk; then note it as the newest of its run."""
    unfinished, path = folder / unfinished_name(name), folder / name
    if unfinished.is_dir():
        sizes = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
        write_json(unfinished / MANIFEST, {"files": sizes})
    synchronize(unfinished)
    if path.is_dir():  # of an earlier run: a folder cannot be renamed over another
        remove(path)
    unfinished.replace(path)
    synchronize(folder, recursive=False)
    return path


def note_newest(work_dir: Path, path: Path) -> None:
    """Write the name of a whole checkpoint where mmengine and `pallava convert` look for the newest."""
    write_text(work_dir / "last_checkpoint", str(path))


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
    for leftover in folder.glob(".*.unfinished"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete: files with their ends, and all that a folder lists."""
    if path.is_file():
        return zipfile.is_zipfile(path)
    files = [file for file in path.iterdir() if file.suffix == ".pt"]
    try:
        sizes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:  # written by mmengine alone
        sizes = {}
    except (ValueError, KeyError, TypeError):
        return False
    listed = all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items())
    return listed and bool(files) and all(map(zipfile.is_zipfile, files))


def newest_whole(work_dir: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, by its number of iterations; None without any."""
    found = {path: match for path in work_dir.glob("*") if (match := _NUMBER.fullmatch(path.name))}
    newest_first = sorted(found, key=lambda path: int(found[path][1]), reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def read_meta(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of its run: seed, iteration, launch; its weights stay on the disk.

    Raises:
        PallavaError: It is damaged, or no checkpoint of a training.
    """
    file = next(path.glob("*model_states.pt"), None) if path.is_dir() else path
    if file is None:
        raise PallavaError(f"'{path}' is not a checkpoint: it has no *_model_states.pt; give another one")
    try:
        with safe_globals(admitted_globals()):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise unreadable(file, error) from None
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or "seed" not in meta:
        raise PallavaError(
            f"'{path}' is not a checkpoint of a training; resume from one, or load it by model.pretrained_pth"
        )
    return meta
