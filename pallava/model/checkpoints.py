"""Reading weights that came from elsewhere, safely.

The only reader of foreign weight files. Nothing in a file is ever executed: safetensors, or PyTorch's
``weights_only`` unpickler with a short list of harmless names, whose objects are replaced by an empty stand-in.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pallava.errors import PallavaError
from pallava.model.state_dicts import StateDict

# What training checkpoints of mmengine and DeepSpeed hold beside tensors: logs, counters and settings, which we
# never read. Each name is answered by a stand-in, so that the real code is neither imported nor run.
_IGNORED_GLOBALS = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "numpy.dtypes.UInt32DType",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_MODEL_STATES = "mp_rank_00_model_states.pt"  # where ZeRO-1 and -2 keep the trained weights whole
_SAFE_TORCH = (2, 10)  # older weights_only unpicklers could be attacked (CVE-2025-32434 and a later one)


class _Ignored(dict):
    """Stands in for an object we do not read; swallows whatever its pickle does to it."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(source: str | os.PathLike[str]) -> StateDict:
    """Reads the tensors of a weights file, a checkpoint, a DeepSpeed folder or a Hugging Face folder.

    Args:
        source: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``; a DeepSpeed checkpoint folder or a file in it; a
            folder with ``model.safetensors`` (sharded or not) or one weights file; a run's work directory (its newest
            checkpoint).

    Raises:
        PallavaError: Nothing there, truncated, no weights in it, or it holds code or objects.
    """
    path = Path(source)
    if not path.exists():
        raise PallavaError(f"No weights at {path}: the path does not exist. Give a checkpoint file or folder.")
    path = newest_checkpoint(path)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def read_json(path: Path) -> Any:
    """Reads what describes weights, such as ``config.json``.

    Raises:
        PallavaError: It is not there, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PallavaError(f"There is no {path.name} in {path.parent}.") from None
    except ValueError as error:  # no UTF-8, or no JSON
        raise PallavaError(f"{path} is not JSON ({error}).") from None


def read_tensors(folder: str | os.PathLike[str], prefixes: tuple[str, ...]) -> StateDict:
    """Reads the tensors under some prefixes from the safetensors of a folder, and nothing else of them.

    Args:
        folder: With ``model.safetensors``, sharded or not.
        prefixes: What the names begin with; they stay.

    Raises:
        PallavaError: There is no such file, or one is broken.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise PallavaError(f"No weights in the folder {folder}: expected model.safetensors.")
    found: StateDict = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                found.update({k: tensors.get_tensor(k) for k in tensors.keys() if k.startswith(prefixes)})  # noqa: SIM118
        except SafetensorError as error:
            raise PallavaError(f"{file} is not readable ({error}): copy or download it again.") from None
    return found


def newest_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a training run's work directory; any other path itself.

    Raises:
        PallavaError: The checkpoint that the directory names is gone.
    """
    note = path / "last_checkpoint"
    if not note.is_file():
        return path
    name = Path(note.read_text(encoding="utf-8", errors="replace").strip()).name  # the directory may have been moved
    if name in ("", ".."):
        raise PallavaError(f"{note} names no checkpoint: name one yourself.")
    newest = path / name
    if not newest.exists():
        raise PallavaError(f"{path} names {name} as its newest checkpoint, but that is gone: name another one.")
    return newest


def _read_folder(folder: Path) -> StateDict:
    tagged = sorted(folder.glob(f"**/{_MODEL_STATES}"))
    if tagged:
        return _read_file(_latest_tag(folder, tagged))
    shards = sorted(folder.glob("model*.safetensors"))
    files = shards or sorted(p for p in folder.iterdir() if p.suffix in {".bin", ".pth", ".pt", ".safetensors"})
    files = [p for p in files if p.name not in {"training_args.bin", "optimizer.pt", "scheduler.pt"}]
    if not files:
        raise PallavaError(
            f"No weights in the folder {folder}: expected model.safetensors or one .bin, .pth or .pt file."
        )
    if not shards and len(files) > 1 and not files[0].name.startswith("pytorch_model-"):
        names = ", ".join(p.name for p in files)
        raise PallavaError(f"The folder {folder} holds several weight files ({names}): give the path of one.")
    merged: StateDict = {}
    for file in files:
        merged.update(_read_file(file))
    return merged


def _latest_tag(folder: Path, tagged: list[Path]) -> Path:
    latest = folder / "latest"
    newest = max(tagged, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    named = folder / latest.read_text(errors="replace").strip() / newest.name if latest.is_file() else newest
    return named if named in tagged else newest


def _read_file(path: Path) -> StateDict:
    if path.stat().st_size == 0:
        raise PallavaError(f"The weights file {path} is empty (0 bytes): copy or download it again.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise PallavaError(
                f"{path} is not a readable safetensors file ({error}): copy or download it again."
            ) from None
    if path.name.endswith("_optim_states.pt") and (path.parent / _MODEL_STATES).is_file():
        return _read_file(path.parent / _MODEL_STATES)  # a rank's share of the optimizer lies beside the weights
    return _tensors_of(_unpickle_safely(path), path)


def _unpickle_safely(path: Path) -> Any:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_TORCH:
        raise PallavaError(
            f"{path} is a pickle, and torch {torch.__version__} cannot open one from elsewhere safely: "
            "install torch 2.10 or newer, or give a .safetensors file."
        )
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED_GLOBALS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        reason = str(error).split("Please file an issue")[0]
        if "Unsupported" in reason or "GLOBAL" in reason:
            named = [line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line]
            raise PallavaError(
                f"{path} was not opened, and nothing in it was executed: it holds more than tensors "
                f"({named[0] if named else reason[:200]}). Ask its author for a .safetensors file."
            ) from None
        first = reason.strip().splitlines()[0] if reason.strip() else type(error).__name__
        raise PallavaError(f"{path} is not a readable PyTorch file ({first}): copy or download it again.") from None


def _tensors_of(content: Any, path: Path) -> StateDict:
    for key in ("state_dict", "module", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise PallavaError(f"{path} holds no weights: expected a state dict, found {type(content).__name__}.")
    tensors = {str(key).removeprefix("module."): v for key, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise PallavaError(f"{path} holds no weights: its {len(content)} entries are no tensors.")
    _check_plain(tensors, path)
    return tensors


def _check_plain(tensors: StateDict, path: Path) -> None:
    """Refuses tensors that say they are larger than the file: a few bytes, repeated, could fill the memory."""
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise PallavaError(
                f"{path} holds {key} in a form that weights do not have ({value.layout}, {value.dtype})."
            )
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise PallavaError(f"{path} says that {key} has the shape {tuple(value.shape)}, but holds fewer numbers.")
