"""Weights: read safely from any file, renamed by tables, compared key by key, and loaded strictly.

Nothing in a file is ever executed: safetensors, or PyTorch's ``weights_only`` unpickler with a short list of harmless
names, whose objects are replaced by an empty stand-in.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pallava.errors import PallavaError
from pallava.io.files import read_package_data
from pallava.model.masters import with_masters
from pallava.open_clip_weights import unwrap_key

StrPath: TypeAlias = str | os.PathLike[str]
StateDict = dict[str, Tensor]
Renames = tuple[tuple[str, str | None], ...]
"""(part of a published key, its replacement in ours); None drops the key."""

PLIP_RENAMES: Renames = (
    ("vision_model.embeddings.position_ids", None),  # a buffer that newer transformers recompute
    ("post_layrnorm", "post_layernorm"),
)

_MODEL_STATES = "mp_rank_00_model_states.pt"  # where ZeRO-1 and -2 keep the trained weights whole
_SAFE_TORCH = (2, 10)  # older weights_only unpicklers could be attacked (CVE-2025-32434 and a later one)


class _Ignored(dict):
    """Stand-in for an object that is not read; it swallows whatever its pickle does to it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(source: StrPath, prefixes: tuple[str, ...] = ("",)) -> StateDict:
    """Read the tensors of a weights file, a checkpoint, a DeepSpeed folder or a Hugging Face folder; run no code in it.

    Keys lose what DDP, torch.compile and the like put before them, such as ``module._orig_mod.``. Weights that
    DeepSpeed rounded to half precision are read as their float32 masters; a warning says where that is not possible.

    Args:
        source: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``; a DeepSpeed checkpoint folder or a file in it; a
            folder with ``model.safetensors`` (sharded or not) or one weights file; a run's work directory (its newest
            checkpoint).
        prefixes: Beginnings of the keys to return; of safetensors, nothing else is read.

    Raises:
        PallavaError: The source does not exist, is truncated, has no weights, or holds code or objects.
    """
    path = Path(source)
    if not path.exists():
        raise PallavaError(f"no weights at '{path}': the path does not exist; give a checkpoint file or folder")
    path = _newest_checkpoint(path)
    files = _files_of(path) if path.is_dir() else [path]
    found = {key: value for file in files for key, value in _read_file(file, prefixes).items()}
    return {key: value for key, value in found.items() if key.startswith(prefixes)}


def read_json(path: Path) -> Any:
    """Read a description of weights, such as ``config.json``.

    Raises:
        PallavaError: The file does not exist, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PallavaError(f"no {path.name} in '{path.parent}'") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise PallavaError(f"'{path}' is not JSON ({error})") from None


def _newest_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of a training run's work directory; any other path unchanged."""
    note = path / "last_checkpoint"
    if not note.is_file():
        return path
    name = Path(note.read_text(encoding="utf-8", errors="replace").strip()).name  # the directory may have been moved
    if name in ("", ".."):
        raise PallavaError(f"'{note}' names no checkpoint; give the path of one")
    newest = path / name
    if not newest.exists():
        raise PallavaError(f"'{path}' names {name} as its newest checkpoint, but that is gone; give another one")
    return newest


def _files_of(folder: Path) -> list[Path]:
    tagged = sorted(folder.glob(f"**/{_MODEL_STATES}"))
    if tagged:
        newest = max(tagged, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
        latest = folder / "latest"
        tag = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else newest.parent.name
        named = folder / tag / newest.name
        return [named if named in tagged else newest]
    shards = sorted(folder.glob("model*.safetensors"))
    files = shards or sorted(p for p in folder.iterdir() if p.suffix in {".bin", ".pth", ".pt", ".safetensors"})
    files = [p for p in files if p.name not in {"training_args.bin", "optimizer.pt", "scheduler.pt"}]
    if not files:
        raise PallavaError(
            f"no weights in the folder '{folder}': expected model.safetensors or one .bin, .pth or .pt file"
        )
    if not shards and len(files) > 1 and not files[0].name.startswith("pytorch_model-"):
        names = ", ".join(p.name for p in files)
        raise PallavaError(f"the folder '{folder}' holds several weight files ({names}); give the path of one")
    return files


def _read_file(path: Path, prefixes: tuple[str, ...]) -> StateDict:
    if path.stat().st_size == 0:
        raise PallavaError(f"the weights file '{path}' is empty (0 bytes); copy or download it again")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as tensors:
                named = [key for key in tensors.keys() if unwrap_key(key).startswith(prefixes)]  # noqa: SIM118
                return rename_keys({key: tensors.get_tensor(key) for key in named}, unwrap_key)
        except SafetensorError as error:
            raise _damaged(path, "safetensors", error) from None
    whole = path.with_name(_MODEL_STATES)
    if path.name.endswith("_optim_states.pt") and whole.is_file():  # a rank's share of the optimizer
        path = whole
    content = _unpickle_safely(path)
    if isinstance(content, dict) and "ds_version" in content and isinstance(content.get("module"), dict):
        content = with_masters(content, path.parent, partial(_unpickle_safely, mmap=True))  # half of a shard is unused
    return _tensors_of(content, path)


def _damaged(path: object, kind: str, reason: object) -> PallavaError:
    return PallavaError(f"'{path}' is not a readable {kind} file ({reason}); copy or download it again")


def _unpickle_safely(path: Path, *, mmap: bool = False) -> Any:
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise PallavaError(
            f"'{path}' is a pickle, and torch {torch.__version__} cannot open a foreign one safely; "
            "install torch 2.10 or newer, or give a .safetensors file"
        )
    ignored = read_package_data(__file__)["ignored_globals"]
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in ignored]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise unreadable(path, error) from None


def unreadable(path: object, error: Exception) -> PallavaError:
    """Return why a file in PyTorch's format cannot be read, from what torch raised."""
    reason = str(error).split("Please file an issue")[0].strip() or type(error).__name__
    if named := [line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line]:
        return PallavaError(
            f"'{path}' was not opened, and nothing in it was executed: it holds more than tensors "
            f"({named[0][:200].split(' was not an allowed')[0]}); ask its author for a .safetensors file"
        )
    return _damaged(path, "PyTorch", reason.splitlines()[0].split(". ")[0][:120])


def _tensors_of(content: Any, path: Path) -> StateDict:
    for key in ("state_dict", "module", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise PallavaError(f"no weights in '{path}': expected a state dict, got {type(content).__name__}")
    tensors = rename_keys({str(key): v for key, v in content.items() if isinstance(v, Tensor)}, unwrap_key)
    if not tensors:
        raise PallavaError(f"no weights in '{path}': none of its {len(content)} entries is a tensor")
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise PallavaError(
                f"'{path}' holds {key} in a form that weights do not have ({value.layout}, {value.dtype})"
            )
        # Larger than the file: a few bytes, repeated, could fill the memory.
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise PallavaError(f"'{path}' says that {key} has the shape {tuple(value.shape)}, but holds fewer numbers")
    return tensors


def rename_keys(state: Mapping[str, Tensor], renames: Renames | Callable[[str], str | None]) -> StateDict:
    """Rename keys by every row of a table in order, or by a function; None drops a key, one name for two is refused."""
    rename = renames if callable(renames) else partial(_rename, renames=renames)
    renamed = {}
    for key, value in state.items():
        new = rename(key)
        if new in renamed:
            raise PallavaError(f"the weights hold {new} under two names, of which one is {key}")
        if new is not None:
            renamed[new] = value
    return renamed


def _rename(key: str, renames: Renames) -> str | None:
    for old, new in renames:
        if old in key:
            if new is None:
                return None
            key = key.replace(old, new)
    return key


def compare_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """List missing, unexpected and reshaped keys; an empty result means that the two agree."""
    pairs = {key: (tuple(found[key].shape), tuple(expected[key].shape)) for key in expected.keys() & found.keys()}
    report = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "reshaped": sorted(f"{key}: {new} where {old} is expected" for key, (new, old) in pairs.items() if new != old),
    }
    return {kind: keys for kind, keys in report.items() if keys}


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, source: object, expected: Mapping[str, Tensor] | None = None
) -> None:
    """Load weights of which no key may be missing, left over, of another shape or not finite.

    A module on the meta device takes the tensors themselves. `expected` are the weights that must come (default: all of
    the module's), and `source` is the origin for the message.

    Raises:
        PallavaError: Keys are missing, unexpected or reshaped, or hold numbers that are not finite; it lists them.
    """
    own = module.state_dict()
    if report := compare_keys(own if expected is None else expected, state):
        raise PallavaError(f"the weights in '{source}' do not fit {type(module).__name__}: {list_keys(report)}")
    check_finite(state, source)
    on_meta = any(tensor.is_meta for tensor in own.values())
    if not on_meta:
        state = {key: value.to(own[key].dtype) if key in own else value for key, value in state.items()}
    module.load_state_dict(state, strict=expected is None, assign=on_meta)


def build_with_weights(build: Callable[[Any], Any], config: Any, state: Mapping[str, Tensor], source: object) -> Any:
    """Build a module from its configuration and exactly these weights, without memory for others, for evaluation.

    Raises:
        PallavaError: As `load_strictly`.
    """
    with init_empty_weights(include_buffers=False):
        module = build(config)
    with torch.device("cpu"):  # weights are real even where the caller builds on the meta device
        learnt = {key for key, _ in module.named_parameters()}  # unlike buffers, such as a batch norm's means
        tensors = {
            key: nn.Parameter(value, requires_grad=value.is_floating_point()) if key in learnt else value
            for key, value in state.items()
        }
    load_strictly(module, tensors, source=source)
    return module.eval()


def check_finite(state: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights with NaN or infinity in them, which no training that went well leaves."""
    if wrong := sorted(key for key, value in state.items() if not _is_finite(value)):
        raise PallavaError(
            f"the weights in '{source}' are broken: {len(wrong)} hold NaN or infinity ({shorten(wrong)}); copy or "
            "download them again, or take an earlier checkpoint"
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not value.numel() or not value.is_floating_point():
        return True
    low, high = (value if value.element_size() > 1 else value.float()).detach().aminmax()  # copies nothing; keeps NaN
    return bool(torch.isfinite(low) and torch.isfinite(high))


def shorten(keys: list[str]) -> str:
    """Return the first five keys, and the number of the others."""
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def list_keys(report: Mapping[str, list[str]]) -> str:
    """Return a report of keys as text, such as "2 missing: a, b"; empty if nothing is wrong."""
    return "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in report.items() if keys)
