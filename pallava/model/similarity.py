"""Where on an image a text is true: the likeness of each patch to the text, in the space that a CLIP gives them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from pallava.model.vision import first_layers


@torch.no_grad()
def embed_patches(tower: CLIPVisionModelWithProjection, pixel_values: Tensor) -> Tensor:
    """Each patch in the space shared with the texts, as MaskCLIP has it (https://arxiv.org/abs/2112.01071).

    The last layer's attention, which gathers all of a tile into its class token, is left out: each patch passes on
    its own value alone.

    Args:
        tower: The vision tower with its projection.
        pixel_values: (N, 3, P, P), normalized tiles.

    Returns:
        (N, T, E), of length 1.
    """
    vision: Any = tower.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values.to(tower.dtype)))
    hidden = first_layers(vision.encoder, "layers", -2)(hidden).last_hidden_state[:, 1:]
    last = vision.encoder.layers[-1]
    hidden = hidden + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
    hidden = hidden + last.mlp(last.layer_norm2(hidden))
    return normalize(tower.visual_projection(vision.post_layernorm(hidden)), dim=-1)
