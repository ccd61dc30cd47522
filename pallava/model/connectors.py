"""Connectors: what turns the encoder's tokens of an image into the tokens that the language model reads.

A connector of your own is a class in a module of your own: see `register_connector`. One file, if a long one, because
the published connector, its keys and the registry refer to each other.

Letters in shape comments: I images, T tokens of a tile, M tile tokens of an image, D encoder width, H language model
width.
"""

import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from pallava.errors import PallavaError
from pallava.io.files import read_package_data
from pallava.model.weights import StrPath, compare_keys, list_keys, load_strictly, read_json, read_weights, rename_keys

CONNECTOR_PREFIXES = ("projector.", "connector.")
"""Prefixes of its keys in a checkpoint: the published one, and ours."""

# Only one is stripped: what follows may be a connector's own `projector`.
_PREFIX = re.compile(f"^(?:{'|'.join(map(re.escape, CONNECTOR_PREFIXES))})")
_PUBLISHED_RENAMES = tuple(read_package_data(__file__)["published"].items())
_EPS = 1e-12  # of every norm in the published connector
_HEAD_WIDTH, _MOST_HEADS = 64, 12  # as published: 768 = 12 * 64
ConnectorClass = TypeVar("ConnectorClass", bound=type[PreTrainedModel])


class ConnectorConfig(PretrainedConfig):
    """Base class of a connector's configuration; a subclass needs a `model_type` and defaults for all its fields."""

    def __init__(self, visual_hidden_size: int = 768, llm_hidden_size: int = 4096, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.visual_hidden_size = visual_hidden_size  # width D of the encoder's tokens
        self.llm_hidden_size = llm_hidden_size  # width H of the language model's embeddings

    @property
    def reads_tiles(self) -> bool:
        """Whether the connector reads the tiles; if not, they are neither cut nor encoded."""
        return True

    def num_visual_tokens(self, tokens_per_tile: int, max_tiles: int) -> int:
        """Return the largest number of visual tokens of one image; `max_tiles` does not count its overview."""
        return tokens_per_tile

    def describe(self) -> str:
        """Return the connector in words, for the model card."""
        return f"{self.model_type}, reads {'overview and tiles' if self.reads_tiles else 'the overview alone'}"


class ScaleInvariantConnectorConfig(ConnectorConfig):
    """Sizes of a `ScaleInvariantConnector`, whose own layers have the width D of the encoder's tokens.

    Raises:
        PallavaError: The heads do not divide the width.
    """

    model_type = "pallava_connector"

    def __init__(
        self,
        visual_hidden_size: int = 768,
        llm_hidden_size: int = 4096,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,  # of each attention; must divide the width
        intermediate_size: int = 3072,
        add_cross_attention: bool = True,  # whether any layer reads the tiles
        cross_attention_layers: list[int] | None = None,  # indices of those that do; None: all of them
        projection_depth: int = 1,  # number of linear layers from D to H, with GELU between them
        dropout: float = 0.1,  # of hidden states and attention probabilities, in training
        initializer_range: float = 0.02,  # standard deviation of new weights
        **kwargs: Any,
    ) -> None:
        super().__init__(visual_hidden_size, llm_hidden_size, **kwargs)
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
                f"num_attention_heads must divide the encoder's width {visual_hidden_size}, got {num_attention_heads}"
            )

    @property
    def reads_tiles(self) -> bool:
        """Whether any layer has cross-attention to the tiles."""
        return self.add_cross_attention

    def describe(self) -> str:
        """Return the number of layers, and which of them read the tiles."""
        layers = self.cross_attention_layers
        some = "" if len(layers) == self.num_hidden_layers else f" in layers {', '.join(map(str, layers))}"
        reads = f"cross-attention to the tiles{some}" if layers else "no cross-attention: reads the overview alone"
        return f"{self.num_hidden_layers} layers, {reads}"


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
        self.projection = _build_projection(config)
        self.post_init()

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor | None = None) -> Tensor:
        """Turn the tokens of overviews (I, T, D) and tiles (I, M, D), padded to the longest, into (I, T, H).

        `tile_mask` (I, M) has 1 for a real token (default: all are real).
        """
        if self.gradient_checkpointing and self.training:
            return checkpoint(self._connect, overview, tiles, tile_mask, use_reentrant=False)
        return self._connect(overview, tiles, tile_mask)

    def _connect(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor | None) -> Tensor:
        hidden = self.qformer.dropout(self.qformer.layernorm(overview))
        sizes = None
        if tile_mask is not None and not tile_mask.is_meta:  # padding is left out, rather than computed and masked
            sizes = tile_mask.sum(1).tolist()
            tiles = tiles[tile_mask.bool()]  # (sum of M, D)
        for layer in self.qformer.encoder.layer:
            hidden = self._attend(layer.attention, hidden, hidden)
            if layer.has_cross_attention:
                hidden = self._attend(layer.crossattention, hidden, tiles, sizes)
            hidden = layer.output_query(layer.intermediate_query(hidden), hidden)
        return self.projection(self.norm(overview + hidden))  # (I, T, H)

    def _attend(self, block: Any, hidden: Tensor, read: Tensor, sizes: list[int] | None = None) -> Tensor:
        """Let each token of `hidden` (I, T, D) read those of `read`, as the block does, but keep no scores (I, T, M).

        `read` is (I, M, D); with `sizes`, the M of each image, (sum of M, D). transformers has eager attention alone
        for this block: benchmarks/training.py.
        """
        attention, heads = block.attention, self.config.num_attention_heads
        query, key, value = (
            linear(tokens).unflatten(-1, (heads, -1)).transpose(-3, -2)  # (I, heads, T or M, D / heads)
            for linear, tokens in ((attention.query, hidden), (attention.key, read), (attention.value, read))
        )
        dropout = attention.dropout.p if self.training else 0.0
        attend = partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout)
        if sizes is None:
            found = attend(query, key, value)
        else:
            images = (query.split(1), key[None].split(sizes, 2), value[None].split(sizes, 2))
            found = torch.cat([attend(*image) for image in zip(*images, strict=True)])
        return block.output(found.transpose(1, 2).flatten(2), hidden)

    @classmethod
    def from_published(
        cls, source: StrPath | Mapping[str, Tensor], num_attention_heads: int = 12, name: object = None
    ) -> "ScaleInvariantConnector":
        """Open a connector under the published keys, with or without their prefix, from a folder, file or state dict.

        Sizes are inferred from keys and shapes, but for the number of heads; `name` is the state dict's in messages.

        Raises:
            PallavaError: The weights cannot be read, or are not those of a connector.
        """
        state = source if isinstance(source, Mapping) else read_weights(source)
        name = name or ("the given state dict" if state is source else source)
        state = own_connector_keys(state)
        connector = cls(_infer_config(state, num_attention_heads, name))
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


class MLPConnectorConfig(ConnectorConfig):
    """Sizes of an `MLPConnector`; fields as in `ScaleInvariantConnectorConfig`."""

    model_type = "pallava_mlp"
    reads_tiles = False  # type: ignore[assignment]

    def __init__(
        self, visual_hidden_size: int = 768, llm_hidden_size: int = 4096, projection_depth: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(visual_hidden_size, llm_hidden_size, **kwargs)
        self.projection_depth = projection_depth

    def describe(self) -> str:
        """Return the number of layers."""
        return f"MLP of {self.projection_depth} layers, reads the overview alone"


class MLPConnector(PreTrainedModel):
    """Linear layers with GELU over each token of the overview, as in LLaVA-1.5 (https://arxiv.org/abs/2310.03744)."""

    config_class = MLPConnectorConfig
    base_model_prefix = "connector"
    supports_gradient_checkpointing = True

    def __init__(self, config: MLPConnectorConfig) -> None:
        super().__init__(config)
        self.projection = _build_projection(config)

    def forward(self, overview: Tensor, tiles: Tensor | None = None, tile_mask: Tensor | None = None) -> Tensor:
        """Turn an overview's tokens (I, T, D) into visual tokens (I, T, H); the other arguments are not read."""
        return self.projection(overview)


CONNECTORS: dict[str, type[PreTrainedModel]] = {
    each.config_class.model_type: each for each in (ScaleInvariantConnector, MLPConnector)
}
"""Classes of connectors by the `model_type` of their configuration."""


def register_connector(connector_class: ConnectorClass) -> ConnectorClass:
    """Add a connector of your own to `CONNECTORS`; works as a decorator of its class.

    Args:
        connector_class: A `PreTrainedModel` built from its configuration alone. Its `config_class` is a subclass of
            `ConnectorConfig`. Its `forward` takes `overview` (I, T, D), `tiles` (I, M, D) and `tile_mask` (I, M), 1 for
            a real token, and returns (I, T', H), or a list of (T_i, H) where images have different numbers of tokens.

    Raises:
        PallavaError: It is not such a class, or its `model_type` is that of another connector.
    """
    config_class = getattr(connector_class, "config_class", None)
    name = import_path(connector_class)
    if not (isinstance(config_class, type) and issubclass(config_class, ConnectorConfig) and config_class.model_type):
        raise PallavaError(f"{name}.config_class must be a subclass of ConnectorConfig with a model_type")
    known = import_path(CONNECTORS.setdefault(config_class.model_type, connector_class))
    if known != name:
        raise PallavaError(f"model_type {config_class.model_type!r} of {name} is already that of {known}")
    CONNECTORS[config_class.model_type] = connector_class  # its module may have been loaded again
    return connector_class


def find_connector(kind: Any) -> Any:
    """Return a connector's class, registered, or a function that builds a connector.

    `kind` is either of them, its import path (the module is imported), or the `model_type` of a class.

    Raises:
        PallavaError: Nothing has that name, or it is not a connector.
    """
    found = CONNECTORS.get(kind) or import_name(kind) if isinstance(kind, str) else kind
    if isinstance(found, type):
        return register_connector(found)
    if not callable(found):
        raise PallavaError(f"connector {kind!r} must be a class, or a function that builds one, got {found!r:.100}")
    return found


def import_name(name: str) -> Any:
    """Return what has an import path, such as ``my_connector.MyConnector``; runs its module.

    Raises:
        PallavaError: It cannot be imported.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PallavaError(
            f"connector {name!r} cannot be imported ({error}); choose {', '.join(CONNECTORS)}, or put its module where "
            "Python finds it, such as in a folder of PYTHONPATH"
        ) from None


def build_connector(
    visual_hidden_size: int, llm_hidden_size: int, kind: Any = ScaleInvariantConnectorConfig.model_type, **sizes: Any
) -> Any:
    """Build a connector with new weights for an encoder and a language model of these widths.

    `kind` is what `find_connector` takes, `sizes` are the other fields of the connector's configuration;
    `num_attention_heads` is chosen by `choose_heads` by default.

    Raises:
        PallavaError: There is no such connector or field.
    """
    widths = {"visual_hidden_size": visual_hidden_size, "llm_hidden_size": llm_hidden_size}
    connector_class = find_connector(kind)
    if not hasattr(connector_class, "config_class"):  # a function
        return connector_class(**widths, **sizes)
    known = set(inspect.signature(connector_class.config_class).parameters) - {"kwargs"}
    if unknown := sorted(sizes.keys() - known):  # transformers' configurations would take anything
        raise PallavaError(
            f"model.connector cannot have {', '.join(unknown)}; its fields are {', '.join(sorted(known))}"
        )
    if "num_attention_heads" in known and not sizes.get("num_attention_heads"):
        sizes["num_attention_heads"] = choose_heads(visual_hidden_size)
    return connector_class(connector_class.config_class(**widths, **sizes))


def choose_heads(width: int) -> int:
    """Choose a number of attention heads: each as wide as the published ones, or at most 12 that divide the width.

    No weight records this number, and a config that leaves it open is read again at conversion: the choice for a width
    must never change.
    """
    if width % _HEAD_WIDTH == 0:
        return width // _HEAD_WIDTH
    return max(heads for heads in range(1, _MOST_HEADS + 1) if width % heads == 0)


def make_connector_config(values: Mapping[str, Any], class_name: str | None = None) -> Any:
    """Build a connector's configuration from its dictionary, by default the published one's; imports nothing.

    Raises:
        PallavaError: Its class is not registered.
    """
    kind = values.get("model_type", ScaleInvariantConnectorConfig.model_type)
    if kind in CONNECTORS:
        return CONNECTORS[kind].config_class(**values)
    if not isinstance(class_name, str):
        raise PallavaError(f"connector {kind!r} is not registered; choose {', '.join(CONNECTORS)}, or register it")
    raise PallavaError(
        f"connector {class_name} does not come with pallava; import module {class_name.rpartition('.')[0]} first, or "
        "allow its import by --trust-remote-code (trust_remote_code=True)"
    )


def describe_connector(values: Mapping[str, Any], class_name: str | None = None) -> str:
    """Describe `connector_config` and `connector_class` of a ``config.json`` for the model card; imports nothing."""
    kind = values.get("model_type", ScaleInvariantConnectorConfig.model_type)
    described = make_connector_config(values).describe() if kind in CONNECTORS else str(kind)
    return f"{described}; {class_name}, which is not part of pallava" if class_name else described


def check_reopenable(connector: Any) -> None:
    """Refuse a connector that no model folder could bring back before it is trained, and register any other.

    Its class must be imported by name, its configuration survive JSON, and a connector built from it have its weights.
    """
    kind: Any = type(connector)
    name = import_path(kind)
    if kind.__module__ == "__main__" or find_connector(name) is not kind:
        raise PallavaError(f"connector {name} must be defined at the top of a module, or no model folder can open it")
    try:
        values = connector.config.to_json_string(use_diff=False)
        kind.config_class()  # transformers writes the difference from the defaults
        config = kind.config_class(**json.loads(values))
        with torch.device("meta"):
            rebuilt = kind(config).state_dict()
    except Exception as error:  # a class of the user's may raise anything
        raise PallavaError(f"connector {name} cannot be built from its configuration alone ({error})") from None
    if config.to_json_string(use_diff=False) != values:
        raise PallavaError(f"{type(config).__name__} must keep the values it is given, got {config.to_dict()}")
    if wrong := list_keys(compare_keys(connector.state_dict(), rebuilt)):
        raise PallavaError(f"connector {name} has other weights when it is built from its configuration ({wrong})")


def import_connector(folder: StrPath) -> None:
    """Import the module of a model folder's connector, if it does not come with pallava.

    Raises:
        PallavaError: The folder has no ``config.json``, or the connector cannot be imported.
    """
    if isinstance(name := read_json(Path(folder) / "config.json").get("connector_class"), str):
        register_connector(find_connector(name))


def import_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def own_connector_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a connector's weights under our keys, from ours or the published ones, alone or inside a checkpoint."""
    inside = {key: value for key, value in state.items() if key.startswith(CONNECTOR_PREFIXES)}
    state = rename_keys(inside or state, lambda key: _PREFIX.sub("", key))
    is_published = any(key.startswith(("model.bert.", "model.mlp.model.")) for key in state)
    return rename_keys(state, _PUBLISHED_RENAMES) if is_published else state


def own_checkpoint_keys(state: Mapping[str, Tensor], config: PretrainedConfig, source: object) -> dict[str, Tensor]:
    """Return a training checkpoint's weights under our keys, from ours or the published ones, for a connector.

    Raises:
        PallavaError: They were trained with cross-attention and the published connector has none, or the reverse.
    """
    connector = own_connector_keys({k: v for k, v in state.items() if k.startswith(CONNECTOR_PREFIXES)})
    has = any(".crossattention." in key for key in connector)
    wants = config.add_cross_attention if isinstance(config, ScaleInvariantConnectorConfig) else has
    if connector and wants != has:
        raise PallavaError(
            f"'{source}' was trained {'with' if has else 'without'} cross-attention to the tiles, but this connector "
            f"is {'with' if wants else 'without'} it; set model.connector.add_cross_attention={has} to use these "
            "weights, or start from others"
        )
    others = {key: value for key, value in state.items() if not key.startswith(CONNECTOR_PREFIXES)}
    return {**others, **{f"connector.{key}": value for key, value in connector.items()}}


def _infer_config(state: Mapping[str, Tensor], num_attention_heads: int, source: object) -> Any:
    layer = "qformer.encoder.layer."
    numbers = _numbers(state, layer, source)
    depths = _numbers((key for key in state if key.endswith("weight")), "projection.", source)
    names = [f"{layer}0.intermediate_query.dense.weight", *(f"projection.{depth}.weight" for depth in sorted(depths))]
    matrices = [state[name] for name in names if name in state and state[name].dim() == 2]
    if not numbers or not depths or len(matrices) < len(names):
        raise PallavaError(
            f"'{source}' must hold a connector, with keys such as model.bert.encoder.layer.0.... and "
            f"model.mlp.model.0.weight, got {', '.join(sorted(state)[:3]) or 'none'}"
        )
    if numbers != set(range(len(numbers))):
        raise PallavaError(f"the Q-Former in '{source}' must have layers without a gap, got {sorted(numbers)[:10]}")
    return ScaleInvariantConnectorConfig(
        visual_hidden_size=matrices[0].shape[1],
        llm_hidden_size=matrices[-1].shape[0],
        num_hidden_layers=len(numbers),
        num_attention_heads=num_attention_heads,
        intermediate_size=matrices[0].shape[0],
        cross_attention_layers=sorted(_numbers((key for key in state if ".crossattention" in key), layer, source)),
        projection_depth=len(depths),
    )


def _numbers(keys: Iterable[str], prefix: str, source: object) -> set[int]:
    found = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    if wrong := sorted(each for each in found if not (each.isascii() and each.isdigit() and len(each) < 5)):
        raise PallavaError(f"'{source}' must hold a connector: {prefix}{wrong[0]} is not a numbered layer")
    return {int(each) for each in found}


def _build_projection(config: Any) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(config.visual_hidden_size, config.llm_hidden_size)]
    for _ in range(1, config.projection_depth):
        layers += [ACT2FN["gelu"], nn.Linear(config.llm_hidden_size, config.llm_hidden_size)]
    return nn.Sequential(*layers)


class _QFormer(Blip2QFormerModel):
    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing where a norm has no weights, over which transformers stumbles from 4.57 on."""
        if not isinstance(module, nn.LayerNorm) or module.elementwise_affine:
            super()._init_weights(module)


def _build_qformer(config: ScaleInvariantConnectorConfig) -> Blip2QFormerModel:
    qformer = _QFormer(
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
