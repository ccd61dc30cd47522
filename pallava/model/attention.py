"""What the model looks at: the connector's attention to the tiles, and the similarity of patches to a text.

Both are computed beside the model and not in it, so that the ordinary path is not touched. Letters in shape comments:
N tiles, T tokens of a tile, S = N * T tile tokens, D encoder width, K layers with cross-attention.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from pallava.errors import PallavaError
from pallava.model.connectors import CONNECTORS, ScaleInvariantConnector
from pallava.model.encoders import adapter_of, first_layers, patch_tokens
from pallava.model.loading import find_folder
from pallava.model.modeling import PALLaVAConfig, import_connector
from pallava.model.weights import build_with_weights, read_weights


@dataclass(frozen=True)
class Eyes:
    """Encoder and connector of a model, without its language model: all that `read_tiles` needs."""

    config: PALLaVAConfig
    encoder: Any
    connector: Any


def load_eyes(folder: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Eyes:
    """Open encoder and connector of a model folder, in float32; its language model is neither read nor needed.

    A connector that does not come with pallava is imported with `trust_remote_code` only.

    Raises:
        PallavaError: The folder is not a model folder, a weight is missing, unexpected or reshaped, or the connector
            cannot be imported.
    """
    path = find_folder(folder, {})
    if trust_remote_code:
        import_connector(path)
    config = PALLaVAConfig.from_pretrained(path)
    state = {key: value.float() for key, value in read_weights(path, ("visual_encoder.", "connector.")).items()}
    parts = build_with_weights(_build_eyes, config, state, path).requires_grad_(False)
    return Eyes(config, parts["visual_encoder"], parts["connector"])


def _build_eyes(config: PALLaVAConfig) -> nn.ModuleDict:
    encoder = adapter_of(config.vision_config).build(config.vision_config)
    connector = CONNECTORS[config.connector_config.model_type](config.connector_config)
    return nn.ModuleDict({"visual_encoder": encoder, "connector": connector})


def read_tiles(eyes: Eyes | Any, pixel_values: Tensor) -> Tensor:
    """Return the attention that each token of an image's overview pays to each token of its tiles.

    Args:
        eyes: Encoder and connector.
        pixel_values: (1+N, 3, P, P), one image, the overview first.

    Returns:
        (K, T, N, T): by layer, overview token, tile and its token; averaged over the heads; sums to 1 over the last
        two dimensions.

    Raises:
        PallavaError: The connector has no cross-attention, or the image has no tile.
    """
    if len(pixel_values) < 2:
        raise PallavaError(f"an image must have its overview and at least one tile, got {len(pixel_values)} row(s)")
    tokens = patch_tokens(eyes.encoder, pixel_values, eyes.config.vision_feature_layer)  # (1+N, T, D)
    attention = cross_attention(eyes.connector, tokens[:1], tokens[1:].flatten(0, 1)[None])[0]  # (K, T, S)
    return attention.unflatten(-1, (len(pixel_values) - 1, tokens.shape[1]))


@torch.no_grad()
def cross_attention(connector: Any, overview: Tensor, tiles: Tensor) -> Tensor:
    """Return a connector's attention (B, K, T, S) to the tiles, averaged over the heads; sums to 1 over S.

    `overview` is (B, T, D), `tiles` (B, S, D) without padding.

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


@torch.no_grad()
def embed_patches(tower: CLIPVisionModelWithProjection, pixel_values: Tensor) -> Tensor:
    """Embed each patch in the space shared with the texts, as MaskCLIP does (https://arxiv.org/abs/2112.01071).

    The last layer's attention, which gathers all of a tile into its class token, is left out: each patch passes on
    its own value alone.

    Normalized tiles (N, 3, P, P) give (N, T, E), each of length 1.
    """
    vision: Any = tower.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values.to(tower.dtype)))
    hidden = first_layers(vision.encoder, "layers", -2)(hidden).last_hidden_state[:, 1:]
    last = vision.encoder.layers[-1]
    hidden = hidden + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
    hidden = hidden + last.mlp(last.layer_norm2(hidden))
    return normalize(tower.visual_projection(vision.post_layernorm(hidden)), dim=-1)
