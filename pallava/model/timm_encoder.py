"""Vision transformers of timm as encoders: UNI, Virchow2, H-optimus and others are timm names."""

import math
from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, PretrainedConfig, PreTrainedModel

from pallava.errors import PallavaError
from pallava.model.clip import make_image_processor
from pallava.model.versions import keep_name
from pallava.model.weights import StrPath, load_strictly, read_weights

_HEADS = ("head.", "fc_norm.", "head_drop.", "attn_pool.")  # layers after the tokens
_LAYER_CLASSES = ("mlp_layer", "norm_layer", "embed_layer", "block_fn")  # by name: a config cannot hold classes


class TimmEncoderConfig(PretrainedConfig):
    """Configuration of a `TimmEncoder`: timm's name of the model, options, and the sizes that timm builds it with."""

    model_type = "pallava_timm"

    def __init__(
        self,
        architecture: str = "vit_small_patch16_224",
        model_args: Mapping[str, Any] | None = None,  # of timm.create_model; layer classes by name, as in timm.layers
        hidden_size: int = 384,
        num_hidden_layers: int = 12,
        image_size: int = 224,
        patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(**kwargs)


class TimmEncoder(PreTrainedModel):
    """A vision transformer of timm without its head, as a model of transformers."""

    config_class = TimmEncoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: TimmEncoderConfig, timm_model: nn.Module | None = None) -> None:
        super().__init__(config)
        self.timm_model: Any = timm_model or _create(config.architecture, config.model_args)
        self.post_init()

    def forward(self, pixel_values: Tensor, layer: int = -1) -> Tensor:
        """Return a layer's patch tokens (N, T, D), not yet normalized, of tiles (N, 3, P, P); run no later block.

        `layer` is an index into the hidden states, of which the first is the embeddings'.
        """
        depth = self.config.num_hidden_layers
        block = layer - 1 if layer >= 0 else depth + layer
        (tokens,) = self.timm_model.forward_intermediates(
            pixel_values, indices=[block], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        return tokens

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass."""
        self.timm_model.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations."""
        self.timm_model.set_grad_checkpointing(False)

    @staticmethod
    def _fix_state_dict_key_on_load(key: str) -> Any:
        """Keep layer scale's ``gamma``, which transformers would rename to ``weight``."""
        return keep_name(key)

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no file holds, such as frequencies, which newer transformers leave empty."""
        fill: Any = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()


def open_timm(
    name: str,
    *,
    checkpoint: StrPath | None = None,
    pretrained: bool = True,
    resamples: bool | None = None,
    **model_args: Any,
) -> TimmEncoder:
    """Build an encoder by timm's name of it, such as ``vit_small_patch16_224`` or ``hf-hub:MahmoodLab/UNI``.

    Weights are those of `checkpoint`, a file or folder, or those that timm downloads; without `pretrained` and a
    checkpoint they are random. With `resamples` (default: with the option ``img_size``), a checkpoint's position
    embeddings are resampled to the size of the tiles, as timm does with its own.

    Raises:
        PallavaError: timm has no such vision transformer, cannot download it, or the checkpoint does not fit.
    """
    model = _create(name, model_args, pretrained=pretrained and checkpoint is None)
    config = _config_of(model, name, model_args)
    encoder = TimmEncoder(config, model)
    if checkpoint is not None:
        _load(model, checkpoint, resamples="img_size" in model_args if resamples is None else resamples)
    return encoder.eval()


def outline_timm_encoder(description: Mapping[str, Any], **model_args: Any) -> TimmEncoder:
    """Build an encoder without its weights; takes what `outline_timm` takes."""
    model = outline_timm(description, model_args)
    return TimmEncoder(_config_of(model, description["architecture"], model_args), model).eval()


def _config_of(model: Any, name: str, model_args: Mapping[str, Any]) -> TimmEncoderConfig:
    own: dict[str, Any] = {}
    if ":" in name:  # the folder must open without the hub, which adds options to the architecture
        name = model.pretrained_cfg.get("architecture") or name
        own = {k: v for k, v in getattr(model, "_model_args", {}).items() if isinstance(v, (bool, int, float, str))}
        own.pop("num_classes", None)
    return TimmEncoderConfig(
        architecture=name,
        model_args={**own, **model_args},
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        image_size=model.patch_embed.img_size[0],
        patch_size=model.patch_embed.patch_size[0],
    )


def timm_image_processor(description: Mapping[str, Any], **model_args: Any) -> CLIPImageProcessor:
    """Return the preprocessing of a timm model; takes what `outline_timm` takes."""
    from timm.data import resolve_data_config

    model = outline_timm(description, model_args)
    values = resolve_data_config({}, pretrained_cfg=description.get("pretrained_cfg") or model.pretrained_cfg)
    return make_image_processor(
        model.patch_embed.img_size[0],
        resample=int(getattr(Image.Resampling, values["interpolation"].upper(), Image.Resampling.BICUBIC)),
        image_mean=list(values["mean"]),
        image_std=list(values["std"]),
    )


def outline_timm(description: Mapping[str, Any], model_args: Mapping[str, Any]) -> Any:
    """Build a model of timm without its weights, from timm's ``config.json``, of which `architecture` is enough.

    Raises:
        PallavaError: timm has no such vision transformer.
    """
    with init_empty_weights():
        return _create(description["architecture"], {**description.get("model_args", {}), **model_args})


def _create(name: str, model_args: Mapping[str, Any], *, pretrained: bool = False) -> Any:
    import timm  # takes seconds

    given = {k: v for k, v in model_args.items() if k not in ("num_classes", "checkpoint", "pretrained")}
    for key in _LAYER_CLASSES:
        if isinstance(given.get(key), str):
            given[key] = getattr(timm.layers, given[key], given[key])
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **given)
    except Exception as error:  # timm raises RuntimeError, ValueError, TypeError and what downloading raises
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, RuntimeError) and "Unknown model" in reason:
            raise PallavaError(f"timm has no model named {name!r}; see timm.list_models('vit_*')") from None
        advice = "see the options of timm.create_model"
        if pretrained:
            advice = "download it where a network is available, and give the folder, or checkpoint=... beside the name"
        raise PallavaError(f"timm cannot build {name}: {reason}; {advice}") from None
    patches: Any = getattr(model, "patch_embed", None)
    sides = (getattr(patches, "img_size", None), getattr(patches, "patch_size", None))
    is_square = all(side and side[0] == side[1] for side in sides)
    if not (is_square and hasattr(model, "blocks") and hasattr(model, "forward_intermediates")):
        raise PallavaError(
            f"timm model {name} must make a square grid of patch tokens; choose a vision transformer, such as "
            "vit_small_patch16_224"
        )
    return model


def _load(model: nn.Module, source: StrPath, *, resamples: bool) -> None:
    state = {key.removeprefix("timm_model."): value for key, value in read_weights(source).items()}
    own = model.state_dict().keys()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(_HEADS)}
    if resamples and "pos_embed" in state:
        state["pos_embed"] = _resample(state["pos_embed"], model)
    load_strictly(model, state, source=source)


def _resample(positions: Tensor, model: Any) -> Tensor:
    """Resample position embeddings (1, T, D) to the model's grid; those of no square grid stay as they are."""
    from timm.layers import resample_abs_pos_embed

    num_others = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    if positions.ndim != 3 or not math.sqrt(max(positions.shape[1] - num_others, 0)).is_integer():
        return positions
    return resample_abs_pos_embed(positions, model.patch_embed.grid_size, num_prefix_tokens=num_others)
