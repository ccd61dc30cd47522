"""A CLIP on disk in each of its forms: read, converted, written."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from pallava.errors import PallavaError
from pallava.model.checkpoints import read_json, read_weights
from pallava.model.clip_conversion import (
    Form,
    convert_state,
    form_of,
    huggingface_config,
    huggingface_vision_config,
    open_clip_description,
    vision_tower,
)
from pallava.model.state_dicts import StateDict, load_strictly
from pallava.model.vision import find_image_processor, make_image_processor
from pallava.tiling import TileSpec

DESCRIPTION, WEIGHTS = "open_clip.json", "open_clip.pt"
"""Of an open_clip model in a folder: its description, and its state dict."""
PUBLISHED_WEIGHTS = "plip_80w_196token.bin"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_CLIP_VOCABULARY = 49408

AnyConfig: TypeAlias = "CLIPConfig | CLIPVisionConfig"


def convert_encoder(source: str | os.PathLike[str], out: str | os.PathLike[str], to: Form, model: str = "") -> Path:
    """Converts a CLIP, or a vision tower alone, into a new folder of another form, its preprocessing beside it.

    Args:
        source: A Hugging Face or the published folder; an open_clip checkpoint; a folder with ``open_clip.json`` and
            ``open_clip.pt``.
        out: Folder to write; appears complete or not at all.
        to: The form to write.
        model: Of an open_clip checkpoint: open_clip's name of the model, or a JSON file that describes it.

    Raises:
        PallavaError: The source is none of these, the other form has no place for it, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise PallavaError(f"{out} exists already; give another folder, or remove it")
    state, config = _read(source, model)
    state = convert_state(state, to)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        _WRITERS[to](state, config, unfinished)
        _write_preprocessing(source, config, unfinished)
        if to == "huggingface" and isinstance(config, CLIPConfig):
            _write_tokenizer(source, config, unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def read_description(model: str, *, has_text: bool = True) -> dict[str, Any]:
    """The description of an open_clip model.

    Args:
        model: open_clip's name of it, or a JSON file.
        has_text: Whether the file must describe a text tower, which a vision tower alone has not.

    Raises:
        PallavaError: There is no such name, or the file is no such description.
    """
    if not model.endswith(".json"):
        import open_clip  # takes seconds to import

        described = open_clip.get_model_config(model)
        if described is None:
            raise PallavaError(f"open_clip has no model named {model!r}: see open_clip.list_models(), or give a .json")
        return dict(described)
    try:
        described = json.loads(Path(model).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PallavaError(f"cannot read the model description {model}: {error}") from None
    required = {"embed_dim", "vision_cfg", "text_cfg"} if has_text else {"embed_dim", "vision_cfg"}
    missing = required - (described.keys() if isinstance(described, dict) else set())
    if missing:
        raise PallavaError(f"{model} describes no open_clip model: {', '.join(sorted(missing))} missing")
    return described


def load_projected_vision(source: str | os.PathLike[str], model: str = "") -> CLIPVisionModelWithProjection:
    """Opens the vision tower of a whole CLIP with its projection into the space that it shares with the texts.

    Args:
        source: As for `convert_encoder`.
        model: As for `convert_encoder`.

    Raises:
        PallavaError: No such source, a CLIP without projection, or weights that do not fit.
    """
    state, config = _read(Path(source), model)
    vision = config.vision_config if isinstance(config, CLIPConfig) else config
    if isinstance(config, CLIPConfig):
        vision.projection_dim = config.projection_dim
    state = convert_state(vision_tower(state), "huggingface")
    state = {key: value.float() for key, value in state.items() if not key.endswith(".position_ids")}
    if "visual_projection.weight" not in state:
        raise PallavaError(f"{source} is a vision tower alone: it shares no space with texts. Give the whole CLIP.")
    with init_empty_weights(include_buffers=False):
        tower = CLIPVisionModelWithProjection(vision)
    load_strictly(tower, {k: torch.nn.Parameter(v) for k, v in state.items()}, source=source)
    return tower.eval()


def projected_tile_spec(source: str | os.PathLike[str], tower: CLIPVisionModelWithProjection) -> TileSpec:
    """The preprocessing beside a CLIP, or CLIP's own at the size of its vision tower."""
    processor = find_image_processor(source) or make_image_processor(tower.config.image_size)
    return TileSpec.from_image_processor(processor)


def _read(source: Path, model: str) -> tuple[StateDict, AnyConfig]:
    if not source.exists():
        raise PallavaError(f"No encoder at {source}: the path does not exist.")
    if (source / DESCRIPTION).is_file():
        model = model or str(source / DESCRIPTION)
        source = source / WEIGHTS
    elif (source / "config.json").is_file():
        return read_weights(source), _read_config(source / "config.json")
    state = read_weights(source)
    if form_of(state) != "open_clip":
        raise PallavaError(f"{source} is no open_clip checkpoint, and there is no config.json that describes it")
    if not model:
        raise PallavaError(
            f"{source} does not say what model it holds: name it by --model, such as --model ViT-B-16-quickgelu"
        )
    has_text = "token_embedding.weight" in state or "text.token_embedding.weight" in state
    described = read_description(model, has_text=has_text)
    return state, huggingface_config(described) if has_text else huggingface_vision_config(described)


def _read_config(path: Path) -> AnyConfig:
    values = read_json(path)
    if "vision_config" in values:
        return CLIPConfig.from_dict(values)
    if "hidden_size" not in values:
        raise PallavaError(f"{path} describes no CLIP: there is neither vision_config nor hidden_size in it")
    return CLIPVisionConfig.from_dict(values)


def _write_huggingface(state: StateDict, config: AnyConfig, folder: Path) -> None:
    kind: Any = CLIPModel if isinstance(config, CLIPConfig) else CLIPVisionModel
    if kind is CLIPVisionModel and "visual_projection.weight" in state:
        kind = CLIPVisionModelWithProjection
    with init_empty_weights(include_buffers=False):
        clip = kind(config)
    state = {key: value for key, value in state.items() if not key.endswith(".position_ids")}
    load_strictly(clip, {k: torch.nn.Parameter(v) for k, v in state.items()}, source="the source")
    clip.save_pretrained(folder)


def _write_open_clip(state: StateDict, config: AnyConfig, folder: Path) -> None:
    described = open_clip_description(config)
    if "logit_bias" in state:  # without it open_clip builds a model that has no bias to load
        described["init_logit_bias"] = state["logit_bias"].item()
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    torch.save(state, folder / WEIGHTS)


def _write_published(state: StateDict, config: AnyConfig, folder: Path) -> None:
    vision = config.vision_config if isinstance(config, CLIPConfig) else config
    vision.save_pretrained(folder)
    torch.save(state, folder / PUBLISHED_WEIGHTS)


_WRITERS: Mapping[Form, Callable[[StateDict, AnyConfig, Path], None]] = {
    "huggingface": _write_huggingface,
    "open_clip": _write_open_clip,
    "published": _write_published,
}


def _write_preprocessing(source: Path, config: AnyConfig, folder: Path) -> None:
    """What lies beside the source, or CLIP's own at the tower's size."""
    vision = config.vision_config if isinstance(config, CLIPConfig) else config
    (find_image_processor(source) or make_image_processor(vision.image_size)).save_pretrained(folder)


def _write_tokenizer(source: Path, config: CLIPConfig, folder: Path) -> None:
    """What lies beside the source, or CLIP's own where the vocabulary is of its size."""
    own = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    for file in own:
        shutil.copy(file, folder)
    if own or config.text_config.vocab_size != _CLIP_VOCABULARY:
        return
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    clip = SimpleTokenizer()
    special = dict(zip(list(clip.encoder)[-2:], ("<|startoftext|>", "<|endoftext|>"), strict=True))
    vocabulary = {special.get(token, token): number for token, number in clip.encoder.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in clip.bpe_ranks)])
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    length = config.text_config.max_position_embeddings
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length).save_pretrained(
        folder
    )
