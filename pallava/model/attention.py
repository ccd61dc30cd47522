"""What the model looks at: the connector's attention to the tiles, and the similarity of patches to a text.

Both are computed beside the model and not in it, so that the ordinary path is not touched. Letters in shape comments:
N tiles, T tokens of a tile, S = N * T tile tokens, D encoder width, K layers with cross-attention.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from pallava.errors import PallavaError
from pallava.model.connectors import ScaleInvariantConnector, import_connector
from pallava.model.encoders import first_layers, patch_tokens
from pallava.model.loading import Placeholder, find_folder
from pallava.model.modeling import PALLaVAConfig, PALLaVAForConditionalGeneration
from pallava.model.weights import StrPath, build_with_weights, read_weights


def load_eyes(folder: StrPath, *, trust_remote_code: bool = False) -> PALLaVAForConditionalGeneration:
    """Open a model folder in float32, without its language model, which is neither read nor needed by `read_tiles`.

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
    build = partial(PALLaVAForConditionalGeneration, llm=Placeholder())
    return build_with_weights(build, config, state, path).requires_grad_(False)


def read_tiles(model: PALLaVAForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Return the attention that each token of an image's overview pays to each token of its tiles.

    The image is (1+N, 3, P, P), its overview first, with at least one tile; the connector must have cross-attention.

    Returns:
        (K, T, N, T): by layer, overview token, tile and its token; averaged over the heads; sums to 1 over the last
        two dimensions.

    Raises:
        PallavaError: The connector has no cross-attention, or the image has no tile.
    """
    if len(pixel_values) < 2:
        raise PallavaError(f"an image must have its overview and at least one tile, got {len(pixel_values)} row(s)")
    tokens = patch_tokens(model.visual_encoder, pixel_values, model.config.vision_feature_layer)  # (1+N, T, D)
    attention = cross_attention(model.connector, tokens[:1], tokens[1:].flatten(0, 1)[None])[0]  # (K, T, S)
    return attention.unflatten(-1, (len(pixel_values) - 1, tokens.shape[1]))


@torch.no_grad()
def cross_attention(connector: Any, overview: Tensor, tiles: Tensor) -> Tensor:
    """Return a connector's attention (B, K, T, S) to the tiles, averaged over the heads; sums to 1 over S.

    `overview` is (B, T, D), `tiles` (B, S, D) without padding.

    Raises:
        PallavaError: The connector has no cross-attention.
    """
    return _attention_of_heads(connector, overview, tiles).mean(2)


@torch.no_grad()
def attention_entropy(connector: Any, overview: Tensor, tiles: Tensor) -> Tensor:
    """Return the entropy of a connector's attention to the tiles by layer, (K,): 1 even over all tokens, 0 on one.

    It is that of each head and overview token as a share of the largest, log S, and their mean. Dropout is left out;
    arguments and errors are those of `cross_attention`.
    """
    was_training = connector.training
    connector.eval()
    attention = _attention_of_heads(connector, overview, tiles)
    connector.train(was_training)
    return torch.special.entr(attention).sum(-1).mean((0, 2, 3)) / math.log(tiles.shape[1])


def _attention_of_heads(connector: Any, overview: Tensor, tiles: Tensor) -> Tensor:
    """Return a connector's attention to the tiles, (B, K, heads, T, S)."""
    if not (isinstance(connector, ScaleInvariantConnector) and connector.config.reads_tiles):
        raise PallavaError("the connector must have cross-attention to the tiles; this one has none to show")
    attentions = [each.crossattention.attention for each in connector.qformer.encoder.layer if each.has_cross_attention]
    linears = [linear for each in attentions for linear in (each.query, each.key)]
    read: list[Tensor] = []  # queries and keys, layer by layer
    hooks = [each.register_forward_hook(lambda module, arguments, output: read.append(output)) for each in linears]
    try:
        connector(*(tokens.to(connector.norm.weight.dtype) for tokens in (overview, tiles)))
    finally:
        for hook in hooks:
            hook.remove()
    heads = [tokens.unflatten(-1, (connector.config.num_attention_heads, -1)).transpose(1, 2) for tokens in read]
    scores = [query @ key.mT / math.sqrt(query.shape[-1]) for query, key in zip(heads[::2], heads[1::2], strict=True)]
    return torch.stack([each.softmax(-1).float() for each in scores], dim=1)


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
