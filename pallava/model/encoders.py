"""Any encoder that makes a grid of patch tokens: CLIP, DINOv2, SigLIP, and the vision transformers of timm.

Kinds and their opening are one file, if a long one, because to add a kind is to write both.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModel, PretrainedConfig
from transformers.activations import QuickGELUActivation

from pallava.errors import PallavaError, check_paths
from pallava.model import clip
from pallava.model.timm_encoder import (
    TimmEncoder,
    TimmEncoderConfig,
    open_timm,
    outline_timm,
    outline_timm_encoder,
    timm_image_processor,
)
from pallava.model.versions import name_tower, vision_tower
from pallava.model.weights import PLIP_RENAMES, StrPath, build_with_weights, read_json, read_weights, rename_keys
from pallava.tiling import TileSpec

_SCHEME = "timm:"
_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
# Towers and heads of a whole CLIP that PA-LLaVA does not read.
_OTHER_PARTS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


class EncoderAdapter(Protocol):
    """How PA-LLaVA uses one kind of encoder.

    The encoder's configuration has `hidden_size`, `num_hidden_layers`, `image_size` (the side of a tile) and
    `patch_size`, which make its number of tokens.
    """

    @property
    def config_class(self) -> type[PretrainedConfig]:
        """Class of its configuration."""

    def build(self, config: Any) -> Any:
        """Build an encoder of these sizes, with new weights."""

    def tokens(self, encoder: Any, pixel_values: Tensor, layer: int) -> Tensor:
        """Turn tiles (N, 3, P, P) into a layer's hidden states (N, T, D), patches alone; run no later layer."""


@dataclass(frozen=True)
class _Transformers:
    config_class: type[PretrainedConfig]
    build: Any
    embed: Callable[[Any, Tensor], Tensor] = lambda tower, pixels: tower.embeddings(pixels)
    layers: str = "layers"
    num_prefix_tokens: int = 0  # register tokens not counted

    def tokens(self, encoder: Any, pixel_values: Tensor, layer: int) -> Tensor:
        tower = vision_tower(encoder)
        hidden = self.embed(tower, pixel_values.to(encoder.dtype))
        hidden = first_layers(tower.encoder, self.layers, layer)(hidden).last_hidden_state
        return hidden[:, self.num_prefix_tokens + getattr(encoder.config, "num_register_tokens", 0) :]


class _Timm:
    config_class = TimmEncoderConfig
    build = TimmEncoder

    def tokens(self, encoder: TimmEncoder, pixel_values: Tensor, layer: int) -> Tensor:
        if layer in (0, -1 - encoder.config.num_hidden_layers):
            raise PallavaError("vision_feature_layer must be 1 or more for a timm model: its embeddings cannot be read")
        return encoder(pixel_values.to(encoder.dtype), layer)


_dinov2 = partial(_Transformers, layers="layer", num_prefix_tokens=1)
ENCODERS: dict[str, EncoderAdapter] = {
    _CLIP: _Transformers(
        transformers.CLIPVisionConfig,
        CLIPVisionModel,
        lambda tower, pixels: tower.pre_layrnorm(tower.embeddings(pixels)),
        num_prefix_tokens=1,
    ),
    "dinov2": _dinov2(transformers.Dinov2Config, transformers.Dinov2Model),
    "dinov2_with_registers": _dinov2(transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    _SIGLIP: _Transformers(transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    "pallava_timm": _Timm(),
}
"""Adapters by the `model_type` of the encoder's configuration."""


def register_encoder(adapter: EncoderAdapter) -> EncoderAdapter:
    """Add a kind of encoder to `ENCODERS`, by the `model_type` of its configuration, and return it."""
    ENCODERS[adapter.config_class.model_type] = adapter
    return adapter


def adapter_of(config: PretrainedConfig | Mapping[str, Any]) -> EncoderAdapter:
    """Return the adapter for an encoder's configuration; a `PallavaError` if its kind is not registered."""
    kind = config.get("model_type", _CLIP) if isinstance(config, Mapping) else config.model_type
    if kind not in ENCODERS:
        raise PallavaError(f"visual encoder type must be one of {', '.join(ENCODERS)}, got {kind!r}")
    return ENCODERS[kind]


def encoder_config(values: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig:
    """Build an encoder's configuration from its dictionary; a configuration is returned as it is."""
    if isinstance(values, PretrainedConfig):
        return values
    return adapter_of(values or {}).config_class(**(values or {}))


def num_tokens(config: Any) -> int:
    """Return the number of patch tokens that an encoder makes of a tile."""
    return (config.image_size // config.patch_size) ** 2


def patch_tokens(encoder: Any, pixel_values: Tensor, layer: int = -2) -> Tensor:
    """Turn normalized tiles (N, 3, P, P) into a layer's hidden states (N, T, D), patches alone; run no later layer.

    `layer` is an index into the hidden states, of which the first is the embeddings'; -2 is the last but one layer.

    Raises:
        PallavaError: The tiles are not of the encoder's size, or it has no such layer.
    """
    config: Any = encoder.config
    if pixel_values.shape[-1] != config.image_size:
        raise PallavaError(
            f"tiles must be {config.image_size} pixels wide for this visual encoder, got {pixel_values.shape[-1]}; "
            "image_processor and visual_encoder must have the same source"
        )
    depth = config.num_hidden_layers
    if not -1 - depth <= layer <= depth:
        raise PallavaError(f"vision_feature_layer must be {-1 - depth} to {depth} for this encoder, got {layer}")
    return adapter_of(config).tokens(encoder, pixel_values, layer)


def first_layers(trunk: nn.Module, name: str, layer: int) -> Any:
    """Return a copy of a trunk that shares its layers and runs them only up to the hidden states of `layer`.

    `name` is that of its list of layers; the first hidden states are the trunk's input.
    """
    layers: Any = getattr(trunk, name)
    shorter = copy.copy(trunk)
    shorter._modules = {name: layers[: layer if layer >= 0 else len(layers) + 1 + layer]}
    return shorter


class _QuickGELU(nn.Module):
    """CLIP's activation, x * sigmoid(1.702 x), written over its input where no gradient needs that.

    The result differs by rounding alone. New memory for each of transformers' three steps takes most of their time:
    benchmarks/encode.py.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.requires_grad:
            return hidden * torch.sigmoid(1.702 * hidden)
        return nn.functional.silu(hidden.mul_(1.702), inplace=True).mul_(1 / 1.702)


def spare_memory(encoder: nn.Module) -> None:
    """Let the activations of an encoder overwrite what nothing else reads: the output of the layer before."""
    for module in encoder.modules():
        if isinstance(getattr(module, "activation_fn", None), QuickGELUActivation):
            module.activation_fn = _QuickGELU()


def load_encoder(source: StrPath, **options: Any) -> Any:
    """Open a visual encoder, in evaluation mode.

    Args:
        source: ``timm:`` and timm's name (``timm:vit_small_patch16_224``, ``timm:hf-hub:MahmoodLab/UNI``); a folder
            of timm, of Hugging Face's DINOv2, SigLIP or CLIP, or of the published PLIP; an open_clip checkpoint.
        **options: `model_name` of an open_clip checkpoint; for timm `checkpoint` (weights in a file), `pretrained`
            and the options of `timm.create_model`, layer classes by their name in `timm.layers`.

    Raises:
        PallavaError: The encoder does not exist, or a weight is missing, unexpected or reshaped.
    """
    check_paths(source)
    path, description = Path(source), _description(source)
    if "architecture" in description:
        if not str(source).startswith(_SCHEME):
            options |= {"checkpoint": path, "resamples": "img_size" in options}
        return open_timm(description["architecture"], **{**description.get("model_args", {}), **options})
    kind = _kind(description)
    if kind == _CLIP:
        return load_plip(path, **options)
    if options:
        raise PallavaError(f"load_encoder takes no {', '.join(options)} for '{path}', an encoder of type {kind}")
    return _open_transformers(path, kind, description)


def load_plip(source: StrPath, model_name: str | None = None) -> CLIPVisionModel:
    """Open a CLIP vision encoder, in evaluation mode.

    `source` is the published folder (``config.json`` and ``plip_80w_196token.bin``), a Hugging Face CLIP or CLIPVision
    folder, or the checkpoint of an open_clip ViT, which open_clip knows as `model_name`.

    Raises:
        PallavaError: The path is none of these, or a key is missing, unexpected or reshaped.
    """
    path = Path(source)
    if path.exists() and model_name is not None:
        return clip.open_clip_vision(_open_clip(model_name), read_weights(path), path)
    if not (path / "config.json").is_file():
        found = "must be a folder with a config.json" if path.exists() else "does not exist"
        raise PallavaError(
            f"visual encoder '{path}' {found}; give the published plip folder, a Hugging Face CLIP folder, or an "
            "open_clip checkpoint with its model name, as in load_plip('epoch_10.pt', model_name='ViT-B-16')"
        )
    return _open_transformers(path, _CLIP, _description(path))


def load_image_processor(source: StrPath, **options: Any) -> CLIPImageProcessor:
    """Open an encoder's preprocessing: size, normalization and filter of its tiles; takes what `load_encoder` takes.

    Raises:
        PallavaError: The encoder does not exist, or its tiles are not square.
    """
    path, description = Path(source), _description(source)
    is_timm = "architecture" in description
    if (path / "preprocessor_config.json").is_file() and (is_timm or _kind(description) == _CLIP):
        return CLIPImageProcessor.from_pretrained(path)
    if is_timm:
        return timm_image_processor(description, **options)
    if path.exists() and (model_name := options.get("model_name")):
        return clip.make_image_processor(clip.huggingface_vision_config(_open_clip(model_name)).image_size)
    if not description:
        raise PallavaError(
            f"visual encoder '{path}' must be a folder with a config.json, or a checkpoint of open_clip with its "
            "model_name beside each use of its source"
        )
    return _image_processor(path, description)


def count_tokens(source: StrPath, **options: Any) -> int:
    """Return the number of patch tokens of a tile without opening weights; takes what `load_encoder` takes.

    Raises:
        PallavaError: The encoder does not exist.
    """
    values = _description(source)
    if "architecture" in values:
        size = TileSpec.from_image_processor(load_image_processor(source, **options)).size
        return (size // outline_timm(values, options).patch_embed.patch_size[0]) ** 2
    return num_tokens(_config_of(source, values, options))


def outline_encoder(source: StrPath, **options: Any) -> Any:
    """Build a visual encoder without its weights, on the meta device; takes what `load_encoder` takes.

    Raises:
        PallavaError: The encoder does not exist.
    """
    check_paths(source)
    values = _description(source)
    if "architecture" in values:
        return outline_timm_encoder(values, **options)
    config = _config_of(source, values, options)
    with init_empty_weights():
        return adapter_of(config).build(config).eval()


def _config_of(source: StrPath, values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return the configuration of an encoder that is not timm's, for tiles of the size that it is given."""
    size = TileSpec.from_image_processor(load_image_processor(source, **options)).size  # reports a missing source
    if model_name := options.get("model_name"):
        return clip.huggingface_vision_config(_open_clip(model_name))
    config: Any = encoder_config({**values.get("vision_config", values), "model_type": _kind(values)})
    config.image_size = size
    if config.model_type == _SIGLIP:
        config.vision_use_head = False  # as `load_encoder` opens it
    return config


def _open_clip(model_name: str) -> dict[str, Any]:
    return clip.read_description(model_name, has_text=False)


def _description(source: StrPath) -> dict[str, Any]:
    """Read ``config.json``, or of a timm model its name; empty where it is missing, which `load_plip` reports."""
    if str(source).startswith(_SCHEME):
        return {"architecture": str(source).removeprefix(_SCHEME)}
    file = Path(source, "config.json")
    values = read_json(file) if file.is_file() else {}
    return values if isinstance(values, dict) else {}


def _kind(description: Mapping[str, Any]) -> str:
    kind = description.get("model_type", _CLIP)
    kind = {"clip": _CLIP, "siglip": _SIGLIP}.get(kind, kind)
    adapter_of({"model_type": kind})
    return kind


def _open_transformers(folder: Path, kind: str, description: Mapping[str, Any]) -> Any:
    values = description.get("vision_config", description)
    known = {"hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size"}
    if not known & values.keys():
        raise PallavaError(f"'{folder / 'config.json'}' must describe a vision model, by one of {sorted(known)}")
    config: Any = ENCODERS[kind].config_class.from_dict(dict(values))
    if kind == _SIGLIP:
        config.vision_use_head = False  # it pools what is read as tokens here
    encoder = build_with_weights(ENCODERS[kind].build, config, _tower_state(folder, kind, config), folder)
    if kind.startswith("dinov2"):
        _fit_positions(encoder, TileSpec.from_image_processor(_image_processor(folder, description)).size)
    return encoder


def _tower_state(folder: Path, kind: str, config: Any) -> dict[str, Tensor]:
    state = read_weights(folder)
    if kind == _CLIP:
        state = rename_keys({k: v for k, v in state.items() if not k.startswith(_OTHER_PARTS)}, PLIP_RENAMES)
        return name_tower(ENCODERS[kind].build, config, state)
    if kind == _SIGLIP:
        if any(key.startswith("vision_model.") for key in state):
            state = {key: value for key, value in state.items() if key.startswith("vision_model.")}
        unread = re.compile(r"(vision_model\.)?(head\.|embeddings\.position_ids)")
        state = {key: value for key, value in state.items() if not unread.match(key)}
        return name_tower(ENCODERS[kind].build, config, state)
    trunk = {key.removeprefix(f"{kind}."): value for key, value in state.items() if key.startswith(f"{kind}.")}
    return trunk or state  # a classifier holds its trunk under this name


def _fit_positions(encoder: Any, size: int) -> None:
    """Resample DINOv2's position embeddings once to the size of the tiles, as it would do in every forward pass."""
    if size == encoder.config.image_size:
        return
    embeddings = encoder.embeddings
    num_patches = (size // encoder.config.patch_size) ** 2
    with torch.no_grad():
        like = torch.empty(1, num_patches + 1, encoder.config.hidden_size)
        positions = embeddings.interpolate_pos_encoding(like, size, size).clone()
    embeddings.position_embeddings = nn.Parameter(positions)
    encoder.config.image_size = size


def _image_processor(folder: Path, description: Mapping[str, Any]) -> CLIPImageProcessor:
    """Read the preprocessing beside the weights, which may be that of another class than CLIP's."""
    file = folder / "preprocessor_config.json"
    size = description.get("vision_config", description).get("image_size", 224)
    values = read_json(file) if file.is_file() else {}
    if "crop_size" in values and values.get("do_center_crop", True):
        size = values["crop_size"]
    elif "size" in values:
        size = values["size"]
    side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    known = {key: values[key] for key in ("image_mean", "image_std", "resample", "rescale_factor") if key in values}
    processor = clip.make_image_processor(side, **known)
    TileSpec.from_image_processor(processor)  # refuses a wrong one
    return processor
