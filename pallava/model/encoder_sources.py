"""Opening visual encoders of every kind from the places their weights come from, and the tiles they want."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import CLIPImageProcessor

from pallava.errors import PallavaError
from pallava.model import vision
from pallava.model.clip import make_image_processor
from pallava.model.encoders import ENCODERS, adapter_of, encoder_config, num_tokens
from pallava.model.timm_encoder import SCHEME, open_timm, open_timm_folder, timm_patch_size, timm_tile_spec
from pallava.model.vision import load_plip
from pallava.model.weights import StateDict, load_strictly, read_json, read_weights, strip_prefix
from pallava.tiling import TileSpec


def load_encoder(source: str | os.PathLike[str], **options: Any) -> Any:
    """Opens a visual encoder, in evaluation mode.

    Args:
        source: ``timm:`` and timm's name (``timm:vit_small_patch16_224``, ``timm:hf-hub:MahmoodLab/UNI``); a folder
            of timm, of Hugging Face's DINOv2, SigLIP or CLIP, or of the published PLIP; an open_clip checkpoint.
        **options: `model_name` of an open_clip checkpoint; of timm `checkpoint` (weights in a file), `pretrained`
            and whatever `timm.create_model` takes, layer classes by their name in `timm.layers`.

    Returns:
        The vision model; its `config` tells hidden_size, image_size and patch_size.

    Raises:
        PallavaError: There is no such encoder, or a weight is missing, unexpected or of another shape.
    """
    source = str(source)
    if source.startswith(SCHEME):
        return open_timm(source.removeprefix(SCHEME), **options)
    path = Path(source)
    description = _description(path)
    if "architecture" in description:
        return open_timm_folder(path, description, **options)
    kind = _kind(description)
    if kind == "clip_vision_model":
        return load_plip(path, **options)
    if options:
        raise PallavaError(f"load_encoder takes no {', '.join(options)} for {path}, an encoder of type {kind}.")
    return _open_transformers(path, kind, description)


def load_image_processor(source: str | os.PathLike[str], **options: Any) -> CLIPImageProcessor:
    """What the tiles of an encoder must be: its size, normalization and filter, from the same source as its weights.

    Args:
        source: As for `load_encoder`.
        **options: As for `load_encoder`.

    Raises:
        PallavaError: There is no such encoder, or it takes no square tiles.
    """
    source = str(source)
    if source.startswith(SCHEME):
        return _processor(timm_tile_spec(source.removeprefix(SCHEME), **options))
    path = Path(source)
    description = _description(path)
    if "architecture" in description and not (path / "preprocessor_config.json").is_file():
        return _processor(timm_tile_spec(str(path), description, **options))
    if "architecture" in description or _kind(description) == "clip_vision_model":
        return vision.load_image_processor(path)
    return _processor(_transformers_tile_spec(path, description))


def count_tokens(source: str | os.PathLike[str], **options: Any) -> int:
    """How many patch tokens the encoder at a source gives for a tile, without opening its weights.

    Args:
        source: As for `load_encoder`.
        **options: As for `load_encoder`.

    Raises:
        PallavaError: There is no such encoder.
    """
    size = TileSpec.from_image_processor(load_image_processor(source, **options)).size
    values = _description(Path(source))
    if str(source).startswith(SCHEME) or "architecture" in values:
        return (size // timm_patch_size(str(source).removeprefix(SCHEME), values, **options)) ** 2
    config = encoder_config({**values.get("vision_config", values), "model_type": _kind(values)})
    config.image_size = size
    return num_tokens(config)


def _description(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says; nothing where there is none, which the reader of PLIP explains."""
    file = folder / "config.json"
    values = read_json(file) if file.is_file() else {}
    return values if isinstance(values, dict) else {}


def _kind(description: Mapping[str, Any]) -> str:
    kind = description.get("model_type", "clip_vision_model")
    kind = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(kind, kind)
    adapter_of({"model_type": kind})
    return kind


def _open_transformers(folder: Path, kind: str, description: Mapping[str, Any]) -> Any:
    values = description.get("vision_config", description)
    config: Any = ENCODERS[kind].config_class.from_dict(dict(values))
    if kind == "siglip_vision_model":
        config.vision_use_head = False  # pools what is read as tokens here
    with init_empty_weights(include_buffers=False):
        encoder = ENCODERS[kind].build(config)
    with torch.device("cpu"):  # weights are real even where the caller builds on the meta device
        state = {k: nn.Parameter(v) for k, v in _tower_state(folder, kind).items()}
    load_strictly(encoder, state, source=folder)
    if kind.startswith("dinov2"):
        _fit_positions(encoder, _transformers_tile_spec(folder, description).size)
    return encoder.eval()


def _tower_state(folder: Path, kind: str) -> StateDict:
    state = read_weights(folder)
    if kind == "siglip_vision_model":
        state = {key: value for key, value in state.items() if key.startswith("vision_model.")}
        left_out = ("vision_model.head.", "vision_model.embeddings.position_ids")
        return {key: value for key, value in state.items() if not key.startswith(left_out)}
    return strip_prefix(state, f"{kind}.")  # a classifier holds its trunk under this name


def _fit_positions(encoder: Any, size: int) -> None:
    """Resamples DINOv2's position embeddings once to the size of the tiles, as it would do in every forward pass."""
    if size == encoder.config.image_size:
        return
    embeddings = encoder.embeddings
    num_patches = (size // encoder.config.patch_size) ** 2
    with torch.no_grad():
        like = torch.empty(1, num_patches + 1, encoder.config.hidden_size)
        positions = embeddings.interpolate_pos_encoding(like, size, size).clone()
    embeddings.position_embeddings = nn.Parameter(positions)
    encoder.config.image_size = size


def _transformers_tile_spec(folder: Path, description: Mapping[str, Any]) -> TileSpec:
    """The preprocessing beside the weights, which may be that of another class than CLIP's."""
    file = folder / "preprocessor_config.json"
    size = description.get("vision_config", description).get("image_size", 224)
    values = read_json(file) if file.is_file() else {}
    if "crop_size" in values and values.get("do_center_crop", True):
        size = values["crop_size"]
    elif "size" in values:
        size = values["size"]
    side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    known = {key: values[key] for key in ("image_mean", "image_std", "resample", "rescale_factor") if key in values}
    return TileSpec.from_image_processor(make_image_processor(side, **known))


def _processor(spec: TileSpec) -> CLIPImageProcessor:
    return make_image_processor(spec.size, resample=spec.resample, image_mean=list(spec.mean), image_std=list(spec.std))
