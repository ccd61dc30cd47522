"""PLIP, the pathology encoder: transformers' `CLIPVisionModel`, from any of the places its weights come from."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from pallava.errors import PallavaError
from pallava.model.clip import huggingface_vision_config, make_image_processor, open_clip_to_huggingface
from pallava.model.transformers_versions import vision_tower
from pallava.model.weights import PLIP_RENAMES, load_strictly, read_json, read_weights, rename_keys

# Towers and heads of a whole CLIP that PA-LLaVA does not read.
_OTHER_PARTS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


def load_plip(source: str | os.PathLike[str], model_name: str | None = None) -> CLIPVisionModel:
    """Opens a CLIP vision encoder, in evaluation mode.

    Args:
        source: The published folder (``config.json`` and ``plip_80w_196token.bin``), a Hugging Face CLIP or
            CLIPVision folder, or an open_clip ViT checkpoint.
        model_name: open_clip's name of the model; needed for its checkpoints alone.

    Raises:
        PallavaError: The path is none of these, or a key is missing, unexpected or of another shape.
    """
    path = Path(source)
    if not path.exists():
        raise PallavaError(
            f"No visual encoder at {path}: the path does not exist. Give the published plip folder, a Hugging Face "
            "CLIP folder, or an open_clip checkpoint with its model name."
        )
    if model_name is not None:
        return _build(*_from_open_clip(read_weights(path), model_name), path)
    if not (path / "config.json").is_file():
        raise PallavaError(
            f"{path} is no folder with a config.json. An open_clip checkpoint needs its model name, "
            "as in load_plip('epoch_10.pt', model_name='ViT-B-16')."
        )
    state = {k: v for k, v in read_weights(path).items() if not k.startswith(_OTHER_PARTS)}
    return _build(_vision_config(path), rename_keys(state, PLIP_RENAMES), path)


def load_image_processor(source: str | os.PathLike[str]) -> CLIPImageProcessor:
    """The preprocessing saved beside an encoder; CLIP's own at the encoder's image size where there is none.

    Raises:
        PallavaError: No such folder.
    """
    folder = Path(source)
    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessor.from_pretrained(folder)
    if not (folder / "config.json").is_file():
        raise PallavaError(f"No visual encoder at {folder}: expected a folder with config.json.")
    return make_image_processor(_vision_config(folder).image_size)


def patch_tokens(encoder: CLIPVisionModel, pixel_values: Tensor, layer: int = -2) -> Tensor:
    """Hidden states of a layer, without the class token; later layers are not run.

    Args:
        encoder: The vision model.
        pixel_values: (N, 3, P, P), normalized tiles.
        layer: Index into the hidden states, of which the first is the embeddings'; -2 is the last but one layer.

    Returns:
        (N, T, D), one token a patch.
    """
    tower = vision_tower(encoder)
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values.to(encoder.dtype)))
    return first_layers(tower.encoder, "layers", layer)(hidden).last_hidden_state[:, 1:]


def first_layers(trunk: nn.Module, name: str, layer: int) -> Any:
    """The same trunk of layers, but running them only up to the hidden states of `layer`.

    Args:
        trunk: Runs its layers one after the other.
        name: Of its list of layers.
        layer: Index into the hidden states, of which the first is what the trunk is given.
    """
    layers: Any = getattr(trunk, name)
    shorter = copy.copy(trunk)  # shares the layers with the encoder
    shorter._modules = {name: layers[: layer if layer >= 0 else len(layers) + 1 + layer]}
    return shorter


def _vision_config(folder: Path) -> CLIPVisionConfig:
    values = read_json(folder / "config.json")
    values = values.get("vision_config", values)
    known = {"hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size"}
    if not known & values.keys():
        raise PallavaError(
            f"{folder / 'config.json'} describes no CLIP vision model: none of {sorted(known)} is in it."
        )
    return CLIPVisionConfig.from_dict(values)


def _build(config: CLIPVisionConfig, state: Mapping[str, Tensor], source: Path) -> CLIPVisionModel:
    with init_empty_weights(include_buffers=False):
        encoder = CLIPVisionModel(config)
    with torch.device("cpu"):  # weights are real even where the caller builds on the meta device
        state = {key: nn.Parameter(value, requires_grad=True) for key, value in state.items()}
    load_strictly(encoder, state, source=source)
    return encoder.eval()


def _from_open_clip(state: Mapping[str, Tensor], model_name: str) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    import open_clip  # takes seconds, and only this source needs it

    described = open_clip.get_model_config(model_name)
    if described is None:
        raise PallavaError(f"open_clip has no ViT named {model_name!r}: see open_clip.list_models().")
    visual = {key: value for key, value in state.items() if key.startswith("visual.") and key != "visual.proj"}
    return huggingface_vision_config(described), open_clip_to_huggingface(visual)
