"""The config of a run, as the run dumped it beside its checkpoints: found, and read without running it.

A config is a program. One that the user names is run, as every trainer does; one that merely lies beside weights, which
may have come from anywhere, is read as data, and may name no parts but those that our configs name.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import get_object_from_string
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from pallava.errors import PallavaError
from pallava.model import load_encoder, load_image_processor, load_plip
from pallava.training.llm import load_llm, load_tokenizer
from pallava.training.model import PALLaVAModel, build_connector

_MUST_HAVE = ("model", "train_dataloader")
_OUR_PACKAGES = ("pallava", "peft", "transformers")
_KNOWN_PARTS: tuple[Callable[..., Any], ...] = (
    PALLaVAModel,
    build_connector,
    load_encoder,
    load_image_processor,
    load_llm,
    load_plip,
    load_tokenizer,
    LoraConfig,
    AutoModelForCausalLM.from_pretrained,
    AutoTokenizer.from_pretrained,
)


class _Program(Exception):
    """A file does more than to give values names."""


def find_config(checkpoint: Path) -> Config | None:
    """Reads the config that a run dumped into its work directory, beside its checkpoints; None if there is none.

    Raises:
        PallavaError: There are several, or it names parts that are not ours.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        found = {path: values for path in sorted(folder.glob("*.py")) if (values := _read_values(path)) is not None}
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise PallavaError(f"{folder} holds several configs ({names}): name the checkpoint's own with --config.")
        for path, values in found.items():
            _check_parts(values, path)
            return Config(values)
    return None


def _read_values(path: Path) -> dict[str, Any] | None:
    """The values of a dumped config; None for any other program."""
    try:
        values = _evaluate(ast.parse(path.read_text(encoding="utf-8")))
    except (_Program, SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None
    return values if all(isinstance(values.get(name), dict) for name in _MUST_HAVE) else None


def _evaluate(module: ast.Module) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for statement in module.body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise _Program
        values[statement.targets[0].id] = _value(statement.value)
    return values


def _value(node: ast.expr) -> Any:
    """A literal, in which ``dict(...)`` may stand."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(each) for each in node.elts)
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(each.arg): _value(each.value) for each in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _Program from None


def _check_parts(values: dict[str, Any], path: Path) -> None:
    dataset = values["train_dataloader"].get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    read = [values["model"], dataset.get("tokenizer"), dataset.get("image_processor")]
    for part in (inner for outer in read for inner in _parts_in(outer)):
        if not _is_known(part["type"]):
            reason = f"names {part['type']}, which is not one of our parts"
        elif part.get("trust_remote_code"):
            reason = "wants to run code that comes with a model (trust_remote_code)"
        else:
            continue
        raise PallavaError(
            f"{path} lies beside the checkpoint and {reason}. If you trust it, name it by --config; if the weights are "
            "another's, move them away from it, and give --llm and --visual-encoder."
        )


def _is_known(name: object) -> bool:
    if not isinstance(name, str):
        return False
    if name.split(".")[0] not in _OUR_PACKAGES:  # a name in xtuner's registry
        return name in {part.__name__ for part in _KNOWN_PARTS}
    try:
        return get_object_from_string(name) in _KNOWN_PARTS
    except (ImportError, AttributeError, ValueError):
        return False


def _parts_in(value: Any) -> list[dict[str, Any]]:
    """All dictionaries with a type, however deep."""
    if isinstance(value, dict):
        inner = [part for each in value.values() for part in _parts_in(each)]
        return [value, *inner] if "type" in value else inner
    return [part for each in value for part in _parts_in(each)] if isinstance(value, (list, tuple)) else []
