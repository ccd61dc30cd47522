"""Any encoder that gives a grid of patch tokens: CLIP, DINOv2, SigLIP, and the vision transformers of timm.

An adapter says how PA-LLaVA uses one kind; `ENCODERS` holds them by the `model_type` of the encoder's configuration,
which the folder of the whole model keeps. To add a kind, put an adapter there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PretrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pallava.errors import PallavaError
from pallava.model import vision
from pallava.model.timm_encoder import TimmEncoder, TimmEncoderConfig
from pallava.model.transformers_versions import vision_tower
from pallava.model.vision import first_layers


class EncoderAdapter(Protocol):
    """How PA-LLaVA uses one kind of encoder.

    The encoder's configuration tells `hidden_size`, `num_hidden_layers`, `image_size` (the side of a tile) and
    `patch_size`; they make its number of tokens.
    """

    @property
    def config_class(self) -> type[PretrainedConfig]:
        """The class of its configuration."""

    def build(self, config: Any) -> Any:
        """An encoder of these sizes, with new weights."""

    def tokens(self, encoder: Any, pixel_values: Tensor, layer: int) -> Tensor:
        """(N, 3, P, P) to (N, T, D): hidden states of a layer, patches alone, row by row; no later layer runs."""


@dataclass(frozen=True)
class _Transformers:
    """An encoder of transformers: what it embeds goes through a list of layers."""

    config_class: type[PretrainedConfig]
    model_class: Any
    embed: Callable[[Any, Tensor], Tensor]
    trunk: Callable[[Any], nn.Module]
    layers: str = "layers"
    num_prefix_tokens: Callable[[Any], int] = lambda config: 0

    def build(self, config: Any) -> Any:
        """Builds the model."""
        return self.model_class(config)

    def tokens(self, encoder: Any, pixel_values: Tensor, layer: int) -> Tensor:
        """Embeds, and runs the layers up to the one that is read."""
        hidden = self.embed(encoder, pixel_values.to(encoder.dtype))
        hidden = first_layers(self.trunk(encoder), self.layers, layer)(hidden).last_hidden_state
        return hidden[:, self.num_prefix_tokens(encoder.config) :]


class _Clip:
    config_class = CLIPVisionConfig

    def build(self, config: CLIPVisionConfig) -> CLIPVisionModel:
        """Builds the model."""
        return CLIPVisionModel(config)

    def tokens(self, encoder: CLIPVisionModel, pixel_values: Tensor, layer: int) -> Tensor:
        """Runs the layers up to the one that is read."""
        return vision.patch_tokens(encoder, pixel_values, layer)


class _Timm:
    config_class = TimmEncoderConfig

    def build(self, config: TimmEncoderConfig) -> TimmEncoder:
        """Builds the model."""
        return TimmEncoder(config)

    def tokens(self, encoder: TimmEncoder, pixel_values: Tensor, layer: int) -> Tensor:
        """Runs the blocks up to the one that is read."""
        if layer in (0, -1 - encoder.config.num_hidden_layers):
            raise PallavaError("vision_feature_layer: the embeddings of a timm model cannot be read; take 1 or later.")
        return encoder(pixel_values.to(encoder.dtype), layer)


ENCODERS: dict[str, EncoderAdapter] = {
    "clip_vision_model": _Clip(),
    "dinov2": _Transformers(
        Dinov2Config, Dinov2Model, lambda m, x: m.embeddings(x), lambda m: m.encoder, "layer", lambda config: 1
    ),
    "dinov2_with_registers": _Transformers(
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        lambda m, x: m.embeddings(x),
        lambda m: m.encoder,
        "layer",
        lambda config: 1 + config.num_register_tokens,
    ),
    "siglip_vision_model": _Transformers(
        SiglipVisionConfig,
        SiglipVisionModel,
        lambda m, x: vision_tower(m).embeddings(x),
        lambda m: vision_tower(m).encoder,
    ),
    "pallava_timm": _Timm(),
}
"""Adapters by the `model_type` of the encoder's configuration."""


def register_encoder(adapter: EncoderAdapter) -> EncoderAdapter:
    """Add a kind of encoder to `ENCODERS`, by the `model_type` of its configuration, and return it."""
    ENCODERS[adapter.config_class.model_type] = adapter
    return adapter


def adapter_of(config: PretrainedConfig | Mapping[str, Any]) -> EncoderAdapter:
    """The adapter for an encoder's configuration.

    Raises:
        PallavaError: There is none for its kind.
    """
    given = config if isinstance(config, Mapping) else {"model_type": config.model_type}
    kind = given.get("model_type", "clip_vision_model")
    if kind not in ENCODERS:
        raise PallavaError(f"PA-LLaVA knows no visual encoder of type {kind!r}; it knows {', '.join(ENCODERS)}.")
    return ENCODERS[kind]


def encoder_config(values: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig:
    """An encoder's configuration from its dictionary, or itself."""
    if isinstance(values, PretrainedConfig):
        return values
    return adapter_of(values or {}).config_class(**(values or {}))


def num_tokens(config: Any) -> int:
    """How many patch tokens an encoder gives for a tile."""
    return (config.image_size // config.patch_size) ** 2


def patch_tokens(encoder: Any, pixel_values: Tensor, layer: int = -2) -> Tensor:
    """Hidden states of a layer, patches alone; later layers are not run.

    Args:
        encoder: A vision model of any kind in `ENCODERS`.
        pixel_values: (N, 3, P, P), normalized tiles.
        layer: Index into the hidden states, of which the first is the embeddings'; -2 is the last but one layer.

    Returns:
        (N, T, D), one token a patch, row by row.

    Raises:
        PallavaError: The tiles have another size than the encoder's, or there is no such layer.
    """
    config: Any = encoder.config
    if pixel_values.shape[-1] != config.image_size:
        raise PallavaError(
            f"The tiles are {pixel_values.shape[-1]} pixels wide, but the visual encoder takes {config.image_size}: "
            "image_processor and visual_encoder must have the same source."
        )
    depth = config.num_hidden_layers
    if not -1 - depth <= layer <= depth:
        raise PallavaError(f"vision_feature_layer={layer}: the visual encoder has hidden states 0 to {depth}.")
    return adapter_of(config).tokens(encoder, pixel_values, layer)
