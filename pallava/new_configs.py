"""Write a config of one's own: a copy of a published one whose settings are replaced by a user's choices."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from packaging.version import Version

from pallava.config_files import find_config
from pallava.errors import PallavaError
from pallava.io.files import read_package_data
from pallava.io.records import RecordFile
from pallava.io.stacks import INSTALL_NEWER

STAGES = {"alignment": "pallava_domain_alignment", "instruction": "pallava_instruction_tuning"}
"""Published config of each stage."""
_GLOBAL_BATCH = {"alignment": 576, "instruction": 384}  # of an optimizer step on all cards, as published
_NUM_LOOKED_AT = 100  # rows
_LORA = {"lora_rank": "r", "lora_alpha": "lora_alpha"}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A language model that is known by name."""

    hub: str
    prompt_template: str
    config: dict[str, Any]  # sizes of its config.json
    transformers: str = "4.48"  # first version that opens it
    note: str = ""

    def check_version(self) -> None:
        """Refuse a transformers that does not know the model."""
        found = importlib.metadata.version("transformers")
        if Version(found) < Version(self.transformers):
            raise PallavaError(f"'{self.hub}' needs the newer stack, got transformers {found}; run `{INSTALL_NEWER}`")


PRESETS = {name: Preset(**values) for name, values in read_package_data(__file__).items()}


@dataclasses.dataclass(frozen=True)
class NewConfig:
    """A user's choices: paths, and the sizes that fit a card."""

    stage: str
    llm: str  # folder, or name on the hub
    prompt_template: str | None
    encoder: str
    data: str
    images: str
    stage1: str | None = None  # its work directory or checkpoint; of the stage "instruction"
    cards: int = 1
    in_4bit: bool = False
    lora_rank: int = 128
    batch_size: int = 6
    sample_image: str | None = None

    @property
    def accumulative_counts(self) -> int:
        """Return how many batches make an optimizer step of about the published size."""
        return max(1, round(self.published_rows / (self.batch_size * self.cards)))

    @property
    def rows(self) -> int:
        """Return the number of rows of an optimizer step."""
        return self.batch_size * self.cards * self.accumulative_counts

    @property
    def published_rows(self) -> int:
        """Return that of the published training."""
        return _GLOBAL_BATCH[self.stage]

    def write(self, name: str) -> str:
        """Return the text of the config, to be saved as a file of this name."""
        values = {
            "llm_name_or_path": self.llm,
            "llm_in_4bit": self.in_4bit,
            "plip_path": self.encoder,
            "data_path": self.data,
            "image_folder": self.images,
            "prompt_template": self.prompt_template,
            "batch_size": self.batch_size,
            "accumulative_counts": self.accumulative_counts,
            "sample_images": [self.sample_image] if self.sample_image else [],
            "lora_rank": self.lora_rank,
            "lora_alpha": 2 * self.lora_rank,
        }
        if self.stage == "instruction":
            values["pretrained_pth"] = self.stage1
        source = STAGES[self.stage]
        text = replace_settings(find_config(source).read_text(encoding="utf-8"), values)
        return text.replace(f"{source}.py", name)


def replace_settings(text: str, values: Mapping[str, Any]) -> str:
    """Replace values in the text of a config, by the names at its top or, of LoRA, `lora_rank` and `lora_alpha`.

    Raises:
        PallavaError: The config lacks one of them.
    """
    tree, places = ast.parse(text), dict[str, ast.expr]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            places.setdefault(node.targets[0].id, node.value)
        elif isinstance(node, ast.Call):
            given = {each.arg: each.value for each in node.keywords}
            if isinstance(kind := given.get("type"), ast.Name) and kind.id == "LoraConfig":
                places |= {name: given[key] for name, key in _LORA.items()}
    if missing := sorted(values.keys() - places.keys()):
        raise PallavaError(f"the config must have settings {', '.join(missing)}")
    lines = text.splitlines(keepends=True)
    for name in sorted(values, key=lambda name: -places[name].lineno):
        place = places[name]
        line = lines[place.lineno - 1].encode()  # columns count bytes
        new = line[: place.col_offset] + _to_python(values[name]).encode() + line[place.end_col_offset :]
        lines[place.lineno - 1] = new.decode()
    return "".join(lines)


def _to_python(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_to_python, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def find_language_model(name: str) -> tuple[str, Preset | None]:
    """Return the folder, or name on the hub, of a language model, and its preset if it is one.

    Raises:
        PallavaError: It is neither a preset, a folder, nor a name on the hub; or transformers is too old for it.
    """
    name = os.path.expanduser(name)  # noqa: PTH111  # a name on the hub is no path
    preset = PRESETS.get(name.lower()) or next((each for each in PRESETS.values() if each.hub == name), None)
    if preset is not None and not Path(name).is_dir():
        preset.check_version()
        return preset.hub, preset
    if not name or (not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~")))):
        raise PallavaError(f"must be {', '.join(PRESETS)}, a folder or a name on the hub, got '{name}'")
    return name, None


def first_rows(file: str | Path) -> list[Any]:
    """Return the first rows of a training file, whatever they are.

    Raises:
        PallavaError: The file is not JSON or JSON Lines.
    """
    return [entry.value for entry in islice(RecordFile(file), _NUM_LOOKED_AT)]


def find_sample_image(data: str, images: str) -> str | None:
    """Return the first image of training files that exists, for sample chats; None if the first rows name none."""
    path = Path(data)
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    for file in files[:1]:
        for row in first_rows(file):
            name = row.get("image") if isinstance(row, dict) else None
            if isinstance(name, str) and Path(images, name).is_file():
                return str(Path(images, name))
    return None
