"""CLIP ViTs under three names for the same tensors: open_clip's, Hugging Face's, and those of the published PLIP.

Hugging Face's form stands in the middle: each of the others is a table to and from it. No tensor is computed with; it
is renamed, transposed, cut or joined, so that a round trip gives back every bit.

D is the width of a tower.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from pallava.errors import PallavaError
from pallava.model.state_dicts import PLIP_RENAMES, StateDict, rename_keys

Form = Literal["open_clip", "huggingface", "published"]
FORMS: tuple[Form, ...] = get_args(Form)

KeyTable = tuple[tuple[str, str], ...]
"""(what an open_clip key begins with or holds, what stands there in Hugging Face's)."""

BEGINNINGS: KeyTable = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),  # SigLIP's; it passes through Hugging Face's form, which has no room for it
)
BLOCK_PARTS: KeyTable = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
TRANSPOSED: KeyTable = (
    ("visual.proj", "visual_projection.weight"),
    ("text_projection", "text_projection.weight"),
)
_VISION = ("visual.", "vision_model.", "visual_projection.")  # what the tower's keys begin with, in every form
_POSITION_IDS = "vision_model.embeddings.position_ids"  # a buffer that the published file holds
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_ACTIVATIONS = {False: "gelu", True: "quick_gelu"}
_LAYER_NORM_EPS = 1e-5  # open_clip's only one

# What a description may say beside the sizes without changing a CLIP ViT's features at inference.
_VISION_SIZES = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT_SIZES = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_HARMLESS = {"patch_dropout", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "eos_id", "pad_id"}


def form_of(state: Mapping[str, Tensor]) -> Form:
    """Tells by its keys which form a state dict has.

    Raises:
        PallavaError: None of the three.
    """
    if any(key.startswith("visual.") for key in state):
        return "open_clip"
    if any("post_layrnorm" in key for key in state):
        return "published"
    if any(key.startswith("vision_model.") for key in state):
        return "huggingface"
    raise PallavaError(
        f"these weights are no CLIP ViT that we know: a key begins with 'visual.' (open_clip) or 'vision_model.' "
        f"(Hugging Face, PLIP), but here the first are {sorted(state)[:3]}"
    )


def vision_tower(state: Mapping[str, Tensor]) -> StateDict:
    """The vision tower out of a state dict of any form, with its projection where there is one."""
    return {key: value for key, value in state.items() if key.startswith(_VISION)}


def convert_state(state: Mapping[str, Tensor], to: Form) -> StateDict:
    """Converts the weights of a CLIP, or of its vision tower alone, to another form.

    Args:
        state: Weights in any of the forms.
        to: The form that comes out; "published" has room for the vision tower only, and drops the rest.

    Raises:
        PallavaError: A key is in no table, or the other form has no place for it.
    """
    form = form_of(state)
    if to == "published":
        state = vision_tower(state)
    elif to == "huggingface" and "logit_bias" in state:
        raise PallavaError(
            "these weights were trained with SigLIP's loss: a Hugging Face CLIP has no place for logit_bias. "
            "Convert to the published form, which is the vision tower alone."
        )
    if form == "open_clip":
        state = open_clip_to_huggingface(state)
    elif form == "published":
        state = rename_keys(state, PLIP_RENAMES)
    if to == "open_clip":
        return huggingface_to_open_clip(state)
    return huggingface_to_published(state) if to == "published" else dict(state)


def open_clip_to_huggingface(state: Mapping[str, Tensor]) -> StateDict:
    """Renames open_clip's keys, cuts its (3D, D) matrix of query, key and value, and transposes the projections.

    Raises:
        PallavaError: A key is in no table.
    """
    projections, result = dict(TRANSPOSED), {}
    for key, value in state.items():
        key = key.removeprefix("text.")  # where open_clip built the text tower as a module of its own
        if key in projections:
            result[projections[key]] = value.T.contiguous()
            continue
        renamed = _rename(key, BEGINNINGS, BLOCK_PARTS)
        if ".in_proj_" not in renamed:
            result[renamed] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            result[renamed.replace("in_proj_", f"{name}_proj.")] = part.clone()
    return result


def huggingface_to_open_clip(state: Mapping[str, Tensor]) -> StateDict:
    """The way back of `open_clip_to_huggingface`.

    Raises:
        PallavaError: A key is in no table.
    """
    beginnings, parts, projections = (_swapped(table) for table in (BEGINNINGS, BLOCK_PARTS, TRANSPOSED))
    to_open_clip, result = dict(projections), {}
    for key, value in state.items():
        if key in to_open_clip:
            result[to_open_clip[key]] = value.T.contiguous()
        elif ".q_proj." in key:
            whole = torch.cat([state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"])
            result[_rename(key.replace(".q_proj.", ".in_proj_"), beginnings, parts)] = whole
        elif ".k_proj." not in key and ".v_proj." not in key and not key.endswith(".position_ids"):
            result[_rename(key, beginnings, parts)] = value
    return result


def huggingface_to_published(state: Mapping[str, Tensor]) -> StateDict:
    """The vision tower under the keys of ``plip_80w_196token.bin``, with its buffer of position ids."""
    misspelt = tuple((ours, published) for published, ours in PLIP_RENAMES if ours is not None)
    tower = {key: value for key, value in state.items() if key.startswith("vision_model.")}
    position_ids = torch.arange(len(tower[_POSITIONS]))[None]  # (1, patches + class token)
    return {_POSITION_IDS: position_ids, **rename_keys(tower, misspelt)}


def huggingface_vision_config(description: Mapping[str, Any]) -> CLIPVisionConfig:
    """What transformers calls the vision tower of a model that open_clip describes.

    Args:
        description: ``embed_dim``, ``vision_cfg`` and perhaps ``quick_gelu``.

    Raises:
        PallavaError: It is no plain CLIP ViT.
    """
    tower = _sizes(description, "vision_cfg", _VISION_SIZES)
    return CLIPVisionConfig(
        **_tower_sizes(tower, description),
        num_attention_heads=tower["width"] // tower["head_width"],
        image_size=_side(tower, "image_size"),
        patch_size=_side(tower, "patch_size"),
    )


def huggingface_config(description: Mapping[str, Any]) -> CLIPConfig:
    """What transformers calls a model that open_clip describes.

    Args:
        description: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and perhaps ``quick_gelu``.

    Raises:
        PallavaError: It is no plain CLIP ViT.
    """
    tower = _sizes(description, "text_cfg", _TEXT_SIZES)
    text = CLIPTextConfig(
        **_tower_sizes(tower, description),
        num_attention_heads=tower["heads"],
        vocab_size=tower["vocab_size"],
        max_position_embeddings=tower["context_length"],
        eos_token_id=2,  # transformers then reads the token of the highest id, as open_clip does
    )
    vision = huggingface_vision_config(description)
    return CLIPConfig.from_text_vision_configs(text, vision, projection_dim=description["embed_dim"])


def open_clip_description(config: CLIPConfig | CLIPVisionConfig) -> dict[str, Any]:
    """What open_clip calls a model that transformers describes; without ``text_cfg`` for a vision tower.

    Raises:
        PallavaError: open_clip cannot build it.
    """
    vision = config.vision_config if isinstance(config, CLIPConfig) else config
    text = config.text_config if isinstance(config, CLIPConfig) else None
    act = _shared_value("hidden_act", vision, text)
    if act not in _ACTIVATIONS.values():
        raise PallavaError(f"open_clip has no activation {act!r}: only {' and '.join(_ACTIVATIONS.values())}")
    if _shared_value("layer_norm_eps", vision, text) != _LAYER_NORM_EPS:
        raise PallavaError(f"open_clip's layer_norm_eps is {_LAYER_NORM_EPS}, not {vision.layer_norm_eps}")
    described: dict[str, Any] = {
        "embed_dim": config.projection_dim,
        "quick_gelu": act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
        },
    }
    return described if text is None else {**described, "text_cfg": _text_description(text)}


def _text_description(text: CLIPTextConfig) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }


def _rename(key: str, beginnings: KeyTable, parts: KeyTable) -> str:
    for old, new in beginnings:
        if key.startswith(old):
            renamed = new + key.removeprefix(old)
            for old_part, new_part in parts:
                renamed = renamed.replace(old_part, new_part)
            return renamed
    raise PallavaError(f"the weight {key!r} belongs to no plain CLIP ViT: there is no other name for it")


def _swapped(table: KeyTable) -> KeyTable:
    return tuple((new, old) for old, new in table)


def _sizes(description: Mapping[str, Any], part: str, sizes: set[str]) -> dict[str, Any]:
    """Sizes of a tower with open_clip's defaults; refuses whatever makes it something else than a CLIP ViT."""
    from open_clip import model  # takes seconds to import

    defaults = vars(model.CLIPVisionCfg() if part == "vision_cfg" else model.CLIPTextCfg())
    if not isinstance(description.get(part), Mapping) or "embed_dim" not in description:
        raise PallavaError(f"an open_clip model is described by embed_dim, vision_cfg and text_cfg; {part} is missing")
    given = {**defaults, **description[part]}
    other = [k for k in given.keys() - sizes - _HARMLESS if k not in defaults or given[k] != defaults[k]]
    if other or not isinstance(given["layers"], int):
        found = ", ".join(f"{key}={given[key]}" for key in sorted(other)) or f"layers={given['layers']}"
        raise PallavaError(f"no plain CLIP ViT, as the encoder must be: its {part} has {found}")
    return given


def _side(tower: Mapping[str, Any], name: str) -> int:
    """A side in pixels, which open_clip takes as a pair of height and width too."""
    value = tower[name]
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
        raise PallavaError(f"the encoder's tiles and patches are square, but {name} is {value}: give one number")
    return sides[0]


def _tower_sizes(tower: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "hidden_act": _ACTIVATIONS[bool(description.get("quick_gelu"))],
        "layer_norm_eps": _LAYER_NORM_EPS,
        "projection_dim": description["embed_dim"],
    }


def _shared_value(name: str, vision: CLIPVisionConfig, text: CLIPTextConfig | None) -> Any:
    """A setting that open_clip has once for both towers."""
    value = getattr(vision, name)
    if text is not None and getattr(text, name) != value:
        raise PallavaError(f"open_clip has one {name} for both towers; here they are {value} and {getattr(text, name)}")
    return value
