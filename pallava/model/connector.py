"""The scale-invariant connector: the overview's tokens read the tiles' tokens and become visual tokens.

Letters in shape comments: B samples, T overview tokens, M tile tokens, D encoder width, H language model width.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from pallava.errors import PallavaError
from pallava.model.weights import CONNECTOR_RENAMES, load_strictly, read_weights, rename_keys

CONNECTOR_PREFIXES = ("projector.", "connector.")
"""Before its keys in a checkpoint: the published name, and ours."""

_EPS = 1e-12  # of every norm in the published connector


class ScaleInvariantConnectorConfig(PretrainedConfig):
    """Sizes of a `ScaleInvariantConnector`.

    Args:
        visual_hidden_size: Width D of the encoder's tokens, and of the connector's own layers.
        llm_hidden_size: Width H of the language model's embeddings.
        num_hidden_layers: Layers of self-attention, cross-attention and feed-forward.
        num_attention_heads: Heads of each attention; must divide `visual_hidden_size`.
        intermediate_size: Width inside the feed-forward.
        add_cross_attention: Whether any layer reads the tiles. Without it the tiles are ignored.
        cross_attention_layers: Which layers do; default: all of them.
        projection_depth: Linear layers from D to H, with GELU between them.
        dropout: Of hidden states and of attention probabilities, while training.
        initializer_range: Standard deviation of new weights.
    """

    model_type = "pallava_connector"

    def __init__(
        self,
        visual_hidden_size: int = 768,
        llm_hidden_size: int = 4096,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        add_cross_attention: bool = True,
        cross_attention_layers: list[int] | None = None,
        projection_depth: int = 1,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visual_hidden_size = visual_hidden_size
        self.llm_hidden_size = llm_hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.projection_depth = projection_depth
        self.dropout = dropout
        self.initializer_range = initializer_range
        # After the base class's constructor, which resets `add_cross_attention`.
        if cross_attention_layers is None:
            cross_attention_layers = list(range(num_hidden_layers)) if add_cross_attention else []
        self.cross_attention_layers = list(cross_attention_layers)
        self.add_cross_attention = bool(cross_attention_layers)
        if visual_hidden_size % num_attention_heads:
            raise PallavaError(
                f"num_attention_heads={num_attention_heads} does not divide the encoder's width "
                f"{visual_hidden_size}: choose a number of heads that does."
            )


class ScaleInvariantConnector(PreTrainedModel):
    """Layers of [self-attention, cross-attention to the tiles, feed-forward], residual, norm, linear.

    The layers are BLIP-2's Q-Former, queried by the overview's tokens (PA-LLaVA, https://arxiv.org/abs/2408.09530).
    """

    config_class = ScaleInvariantConnectorConfig
    base_model_prefix = "connector"
    supports_gradient_checkpointing = True

    def __init__(self, config: ScaleInvariantConnectorConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.qformer = _build_qformer(config)
        self.norm = nn.LayerNorm(config.visual_hidden_size, eps=_EPS)
        layers: list[nn.Module] = [nn.Linear(config.visual_hidden_size, config.llm_hidden_size)]
        for _ in range(1, config.projection_depth):
            layers += [ACT2FN["gelu"], nn.Linear(config.llm_hidden_size, config.llm_hidden_size)]
        self.projection = nn.Sequential(*layers)
        self.post_init()

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor | None = None) -> Tensor:
        """Turns an image's tokens into visual tokens.

        Args:
            overview: (B, T, D), the tokens of each overview.
            tiles: (B, M, D), the tokens of each image's tiles, padded to the longest.
            tile_mask: (B, M), 1 for a real token; default: all are real.

        Returns:
            (B, T, H), visual tokens.
        """
        dtype = self.norm.weight.dtype
        overview, tiles = overview.to(dtype), tiles.to(dtype)
        if self.gradient_checkpointing and self.training:
            return checkpoint(self._connect, overview, tiles, tile_mask, use_reentrant=False)
        return self._connect(overview, tiles, tile_mask)

    def _connect(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor | None) -> Tensor:
        # The layers are run without the model around them: in newer transformers it asks the first norm for a scale,
        # and the published connector's has none.
        queries = self.qformer.dropout(self.qformer.layernorm(overview))
        across = {"encoder_hidden_states": tiles, "encoder_attention_mask": _additive(tile_mask, tiles.dtype)}
        read = self.qformer.encoder(
            queries, query_length=queries.shape[1], **(across if self.config.add_cross_attention else {})
        ).last_hidden_state  # (B, T, D)
        return self.projection(self.norm(overview + read))  # (B, T, H)

    @classmethod
    def from_published(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Tensor],
        num_attention_heads: int = 12,
        name: object = None,
    ) -> "ScaleInvariantConnector":
        """Opens a connector under the published keys; sizes are read off keys and shapes.

        Args:
            source: A folder, a weights file, or a state dict; keys with or without the prefix ``projector.``.
            num_attention_heads: The one size that no shape tells.
            name: Where a state dict comes from, for messages.

        Raises:
            PallavaError: The weights cannot be read, or do not make a connector.
        """
        state = dict(source) if isinstance(source, Mapping) else read_weights(source)
        name = name or ("the given state dict" if isinstance(source, Mapping) else source)
        state = own_connector_keys(state)
        connector = cls(infer_connector_config(state, num_attention_heads=num_attention_heads, source=name))
        load_strictly(connector, state, source=name)
        return connector.eval()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, M), 1 for a real token, to what is added to attention scores: (B, 1, 1, M), 0 for a real token."""
    return None if mask is None else (1 - mask[:, None, None].to(dtype)) * torch.finfo(dtype).min


def own_connector_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A connector's weights under our keys, from ours or the published ones, alone or inside a checkpoint."""
    inside = {key: value for key, value in state.items() if key.startswith(CONNECTOR_PREFIXES)}
    return rename_keys(inside or state, (*((prefix, "") for prefix in CONNECTOR_PREFIXES), *CONNECTOR_RENAMES))


def infer_connector_config(
    state: Mapping[str, Tensor], *, num_attention_heads: int, source: object = "the state dict"
) -> ScaleInvariantConnectorConfig:
    """Reads a connector's sizes off the keys and shapes of its weights.

    Raises:
        PallavaError: A key that every connector has is not there.
    """
    layer = "qformer.encoder.layer."
    numbers = _numbers(state, layer, source)
    depths = _numbers({key: 0 for key in state if key.endswith("weight")}, "projection.", source)
    feed_forward = state.get(f"{layer}0.intermediate_query.dense.weight")
    matrices = [feed_forward, *(state[f"projection.{depth}.weight"] for depth in depths)]
    if not numbers or not depths or any(matrix is None or matrix.dim() != 2 for matrix in matrices):
        raise PallavaError(
            f"{source} holds no connector: expected keys such as model.bert.encoder.layer.0.... and "
            f"model.mlp.model.0.weight, found {', '.join(sorted(state)[:3]) or 'none'}."
        )
    if numbers != set(range(len(numbers))):
        raise PallavaError(f"{source} holds a connector with gaps: layers {sorted(numbers)[:10]} of its Q-Former.")
    feed_forward, last = state[f"{layer}0.intermediate_query.dense.weight"], state[f"projection.{max(depths)}.weight"]
    return ScaleInvariantConnectorConfig(
        visual_hidden_size=feed_forward.shape[1],
        llm_hidden_size=last.shape[0],
        num_hidden_layers=max(numbers) + 1,
        num_attention_heads=num_attention_heads,
        intermediate_size=feed_forward.shape[0],
        cross_attention_layers=sorted(
            n for n in numbers if any(k.startswith(f"{layer}{n}.crossattention") for k in state)
        ),
        projection_depth=len(depths),
    )


def _numbers(keys: Iterable[str], prefix: str, source: object) -> set[int]:
    """The numbers that follow a prefix."""
    found = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    if wrong := sorted(each for each in found if not (each.isascii() and each.isdigit() and len(each) < 5)):
        raise PallavaError(f"{source} holds no connector: {prefix}{wrong[0]} is no numbered layer.")
    return {int(each) for each in found}


def _build_qformer(config: ScaleInvariantConnectorConfig) -> Blip2QFormerModel:
    qformer = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=config.visual_hidden_size,
            encoder_hidden_size=config.visual_hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            layer_norm_eps=_EPS,
            cross_attention_frequency=1,
            attn_implementation="eager",  # the only one it has
        )
    )
    # The published connector normalizes its queries without learning scale or shift.
    qformer.layernorm = nn.LayerNorm(config.visual_hidden_size, eps=_EPS, elementwise_affine=False)
    # No frequency leaves cross-attention out of layer 0, so it is built everywhere and taken away.
    for index, layer in enumerate(qformer.encoder.layer):
        if index not in config.cross_attention_layers:
            del layer.crossattention
            layer.has_cross_attention = False
    return qformer
