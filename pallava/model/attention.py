"""What the connector reads: the attention that the overview's tokens pay to the tokens of the tiles.

It is computed beside the model and not in it, so that the ordinary path stays as it is. Letters in shape comments:
N tiles, T tokens of a tile, S = N * T tile tokens, D encoder width, K layers with cross-attention.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from pallava.errors import PallavaError
from pallava.model.configuration import PALLaVAConfig
from pallava.model.connectors import CONNECTORS, ScaleInvariantConnector
from pallava.model.encoders import adapter_of, patch_tokens
from pallava.model.weights import load_strictly, read_tensors


@dataclass(frozen=True)
class Eyes:
    """The parts of a model that see: all that `read_tiles` needs, without the language model."""

    config: PALLaVAConfig
    encoder: Any
    connector: Any


def load_eyes(folder: str | os.PathLike[str]) -> Eyes:
    """Opens encoder and connector of a model folder, in float32; its language model is neither read nor needed.

    Args:
        folder: What ``pallava convert`` wrote, merged or with an adapter.

    Raises:
        PallavaError: No model there, or a weight is missing, left over or of another shape.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise PallavaError(f"No model folder at {path}: it has no config.json. `pallava convert` writes one.")
    config = PALLaVAConfig.from_pretrained(path)
    with init_empty_weights(include_buffers=False):
        parts = nn.ModuleDict(
            {
                "visual_encoder": adapter_of(config.vision_config).build(config.vision_config),
                "connector": CONNECTORS[config.connector_config.model_type](config.connector_config),
            }
        )
    state = read_tensors(path, ("visual_encoder.", "connector."))
    load_strictly(parts, {key: value.float() for key, value in state.items()}, source=path)
    parts.requires_grad_(False).eval()
    return Eyes(config, parts["visual_encoder"], parts["connector"])  # type: ignore[arg-type]


def read_tiles(eyes: Eyes | Any, pixel_values: Tensor) -> Tensor:
    """The attention that each token of an image's overview pays to each token of its tiles.

    Args:
        eyes: Encoder and connector.
        pixel_values: (1+N, 3, P, P), one image, the overview first.

    Returns:
        (K, T, N, T): by layer, overview token, tile and its token; averaged over the heads; sums to 1 over the last
        two dimensions.

    Raises:
        PallavaError: The connector has no cross-attention, or there is no tile.
    """
    if len(pixel_values) < 2:
        raise PallavaError("An image needs its overview and at least one tile.")
    tokens = patch_tokens(eyes.encoder, pixel_values, eyes.config.vision_feature_layer)  # (1+N, T, D)
    attention = cross_attention(eyes.connector, tokens[:1], tokens[1:].flatten(0, 1)[None])[0]  # (K, T, S)
    return attention.unflatten(-1, (len(pixel_values) - 1, tokens.shape[1]))


@torch.no_grad()
def cross_attention(connector: Any, overview: Tensor, tiles: Tensor) -> Tensor:
    """The connector's attention to the tiles, averaged over the heads.

    Args:
        connector: A `ScaleInvariantConnector`.
        overview: (B, T, D).
        tiles: (B, S, D), without padding.

    Returns:
        (B, K, T, S), sums to 1 over the last dimension.

    Raises:
        PallavaError: The connector has no cross-attention.
    """
    if not (isinstance(connector, ScaleInvariantConnector) and connector.config.reads_tiles):
        raise PallavaError("the connector must have cross-attention to the tiles; this one has none to show")
    dtype = connector.norm.weight.dtype
    read = connector.qformer(
        query_embeds=overview.to(dtype), encoder_hidden_states=tiles.to(dtype), output_attentions=True
    )
    return torch.stack([layer.float().mean(1) for layer in read.cross_attentions], dim=1)
