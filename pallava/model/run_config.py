"""The config of a run as JSON, which training writes into the work directory: written, found, read, described."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.files import write_json
from pallava.model.weights import read_json

CONFIG_FILE = "training_config.json"
_NAME = "config_file"  # key of the name of the Python file that the config was
_DUMPED = re.compile(r"^model = dict\(.*^train_dataloader = dict\(", re.MULTILINE | re.DOTALL)
_MOST_CHARACTERS = 1 << 20  # of a config


def _to_json(values: Any) -> Any:
    """Turn a loaded config into plain JSON values; classes and functions become their import path."""
    if isinstance(values, Mapping):
        return {str(key): _to_json(value) for key, value in values.items()}
    if isinstance(values, (list, tuple, set, frozenset)):
        return [_to_json(value) for value in values]
    if values is None or isinstance(values, (bool, int, float, str)):
        return values
    owner = getattr(values, "__self__", None)  # of `AutoTokenizer.from_pretrained` the class that it was taken from
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{values.__name__}"
    name = getattr(values, "__qualname__", None)
    return f"{values.__module__}.{name}" if name else str(values)


def training_config(values: Mapping[str, Any], config_file: str | Path | None = None) -> dict[str, Any]:
    """Turn a run's loaded config into the JSON that `pallava convert` reads, with the name of the file it came from."""
    return {**_to_json(values), _NAME: Path(config_file).name if config_file else None}


def write_training_config(
    work_dir: str | Path, values: Mapping[str, Any], config_file: str | Path | None = None
) -> None:
    """Write what `training_config` returns into a run's work directory."""
    write_json(Path(work_dir) / CONFIG_FILE, training_config(values, config_file))


def read_training_config(path: str | Path) -> dict[str, Any]:
    """Read a config that `write_training_config` wrote; nothing in it is executed or imported."""
    values = read_json(Path(path))
    check_training_config(values, path)
    return values


def check_training_config(values: Any, source: object) -> None:
    """Refuse a config without the parts that a model folder is made from."""
    found = values if isinstance(values, Mapping) else {}
    loader = found.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    for name, part in (("train_dataloader.dataset", dataset), ("model", found.get("model"))):
        if not isinstance(part, Mapping):
            raise PallavaError(f"'{source}' is not the config of a training: {name} must be an object, got {part!r}")
    if not isinstance(found.get(_NAME), (str, type(None))):
        raise PallavaError(f"'{source}' is not the config of a training: {_NAME} must be text, got {found[_NAME]!r}")


def find_training_config(checkpoint: Path) -> dict[str, Any] | None:
    """Read the config beside a checkpoint, a file inside one, or in a work directory; None without any.

    One of several is refused, and so is one in Python alone, which is a program.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        file, programs = folder / CONFIG_FILE, {path.name for path in folder.glob("*.py") if _is_config(path)}
        if not file.is_file() and programs:
            raise PallavaError(
                f"'{folder}' has a config in Python ({', '.join(sorted(programs))}) but no {CONFIG_FILE}; if you trust "
                "it, name it by --config FILE, which executes it; if it is not the weights' own, move them away from it"
            )
        if file.is_file():
            values = read_training_config(file)
            if values.get(_NAME) and programs - {values[_NAME]}:
                names = ", ".join(sorted({*programs, values[_NAME]}))
                raise PallavaError(f"'{folder}' holds several configs ({names}); name the checkpoint's own by --config")
            return values
    return None


def _is_config(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return bool(_DUMPED.search(file.read(_MOST_CHARACTERS)))
    except OSError:
        return False


def describe_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's data and settings for the model card; what its config does not have is left out."""
    model, loader = values["model"], values["train_dataloader"]
    dataset, loop = loader["dataset"], values.get("train_cfg") or {}
    started_from = model.get("pretrained_pth")
    settings = {
        "config": values.get(_NAME),
        "started from": Path(started_from).name if started_from else None,
        "epochs": loop.get("max_epochs"),
        "steps": loop.get("max_iters"),
        "batch size of a process": loader.get("batch_size"),
        "learning rate": ((values.get("optim_wrapper") or {}).get("optimizer") or {}).get("lr"),
        "LoRA rank": (model.get("llm_lora") or {}).get("r"),
        "prompt template": dataset.get("prompt_template"),
        "context length": dataset.get("context_length"),
    }
    data = [dataset["data_path"]] if dataset.get("data_path") else []
    return {"data": data, **{name: value for name, value in settings.items() if value is not None}}
