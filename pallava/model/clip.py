"""CLIP ViTs in three forms: open_clip's, Hugging Face's and the published PLIP's; read, converted, written.

Hugging Face's form is in the middle: each of the others is a table to and from it. No tensor is computed with; it is
renamed, transposed, cut or joined, so that a round trip gives back every bit. This file is long because keys,
descriptions and files of a form are one matter: a change to one needs the others.

D is the width of a tower.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from pallava.errors import PallavaError
from pallava.io.files import whole_folder, write_json, write_text
from pallava.model.weights import PLIP_RENAMES, StateDict, load_strictly, read_json, read_weights, rename_keys
from pallava.tiling import TileSpec

Form = Literal["open_clip", "huggingface", "published"]
FORMS: tuple[Form, ...] = get_args(Form)
AnyConfig: TypeAlias = "CLIPConfig | CLIPVisionConfig"

DESCRIPTION, WEIGHTS = "open_clip.json", "open_clip.pt"
"""Files of an open_clip model in a folder: its description and its state dict."""
_PUBLISHED_WEIGHTS = "plip_80w_196token.bin"

_KeyTable = tuple[tuple[str, str], ...]  # (beginning or part of an open_clip key, its counterpart in Hugging Face's)
_BEGINNINGS: _KeyTable = (
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
_BLOCK_PARTS: _KeyTable = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_TRANSPOSED: _KeyTable = (
    ("visual.proj", "visual_projection.weight"),
    ("text_projection", "text_projection.weight"),
)
_VISION = ("visual.", "vision_model.", "visual_projection.")  # beginnings of the tower's keys, in every form
_POSITION_IDS = "vision_model.embeddings.position_ids"  # a buffer that the published file holds
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_ACTIVATIONS = {False: "gelu", True: "quick_gelu"}
_LAYER_NORM_EPS = 1e-5  # open_clip's only one
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_CLIP_VOCABULARY = 49408

# What a description may say beside the sizes without changing a CLIP ViT's features at inference.
_VISION_SIZES = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT_SIZES = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_HARMLESS = {"patch_dropout", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "eos_id", "pad_id"}


def convert_encoder(
    source: str | os.PathLike[str], out: str | os.PathLike[str], to: Form, model_name: str = ""
) -> Path:
    """Convert a CLIP, or a vision tower alone, into a new folder of another form, with its preprocessing.

    Args:
        source: A Hugging Face or the published folder; an open_clip checkpoint; a folder with ``open_clip.json`` and
            ``open_clip.pt``.
        out: Output folder; appears complete or not at all.
        to: The form to write.
        model_name: For an open_clip checkpoint: open_clip's name of the model, or a JSON file that describes it.

    Returns:
        The folder.

    Raises:
        PallavaError: The source is none of these, the other form has no room for it, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    state, config = read_clip(source, model_name)
    state = convert_state(state, to)
    with whole_folder(out) as folder:
        _write(to, state, config, folder)
        processor = find_image_processor(source) or make_image_processor(_vision_of(config).image_size)
        processor.save_pretrained(folder)
        if to == "huggingface" and isinstance(config, CLIPConfig):
            _write_tokenizer(source, config, folder)
    return out


def load_projected_vision(source: str | os.PathLike[str], model_name: str = "") -> CLIPVisionModelWithProjection:
    """Open the vision tower of a whole CLIP, with its projection into the space that it shares with texts.

    Takes what `convert_encoder` takes.

    Raises:
        PallavaError: There is no such source, it is a vision tower alone, or its weights do not fit.
    """
    state, config = read_clip(Path(source), model_name)
    vision = _vision_of(config)
    vision.projection_dim = config.projection_dim
    tower = {key: value for key, value in state.items() if key.startswith(_VISION)}
    tower = {key: value.float() for key, value in convert_state(tower, "huggingface").items()}
    if "visual_projection.weight" not in tower:
        raise PallavaError(f"'{source}' is a vision tower alone and shares no space with texts; give the whole CLIP")
    return _fill(CLIPVisionModelWithProjection, vision, tower, source).eval()


def projected_tile_spec(source: str | os.PathLike[str], tower: CLIPVisionModelWithProjection) -> TileSpec:
    """Return the preprocessing beside a CLIP, or CLIP's own at the size of its vision tower."""
    processor = find_image_processor(source) or make_image_processor(tower.config.image_size)
    return TileSpec.from_image_processor(processor)


def make_image_processor(size: int, *, squash: bool = False, **values: Any) -> CLIPImageProcessor:
    """Build preprocessing to squares; CLIP's own but for the values given, such as `image_mean`.

    Args:
        size: Side of the square in pixels.
        squash: Whether both sides are resized to it; otherwise the shorter side is, and the middle is cropped.
        values: Settings of the processor.
    """
    square = {"height": size, "width": size}
    if squash:
        return CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False, **values)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **values)


def find_image_processor(source: str | os.PathLike[str]) -> CLIPImageProcessor | None:
    """Open the preprocessing beside a CLIP's weights, or in the ``encoder`` folder of a training, if there is any."""
    places = (Path(source), Path(source) / "encoder")
    found = [place for place in places if (place / "preprocessor_config.json").is_file()]
    return CLIPImageProcessor.from_pretrained(found[0]) if found else None


def read_description(model_name: str, *, has_text: bool = True) -> dict[str, Any]:
    """Read the description of an open_clip model.

    Args:
        model_name: open_clip's name of it, or a JSON file.
        has_text: Whether the file must describe a text tower, which a vision tower alone has not.

    Raises:
        PallavaError: There is no such name, or the file is not such a description.
    """
    if not model_name.endswith(".json"):
        import open_clip  # takes seconds to import

        described = open_clip.get_model_config(model_name)
        if described is None:
            raise PallavaError(
                f"open_clip knows no model named {model_name!r}; see open_clip.list_models(), or give a .json file"
            )
        return dict(described)
    try:
        described = json.loads(Path(model_name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PallavaError(f"cannot read the model description '{model_name}': {error}") from None
    required = {"embed_dim", "vision_cfg", "text_cfg"} if has_text else {"embed_dim", "vision_cfg"}
    missing = required - (described.keys() if isinstance(described, dict) else set())
    if missing:
        raise PallavaError(f"'{model_name}' does not describe an open_clip model: {', '.join(sorted(missing))} missing")
    return described


def read_clip(source: Path, model_name: str = "") -> tuple[StateDict, AnyConfig]:
    """Read weights, in the form that they have, and their Hugging Face configuration; as for `convert_encoder`.

    Raises:
        PallavaError: The source does not exist, or nothing describes its weights.
    """
    if not source.exists():
        raise PallavaError(f"no encoder at '{source}': the path does not exist")
    if (source / DESCRIPTION).is_file():
        model_name = model_name or str(source / DESCRIPTION)
        source = source / WEIGHTS
    elif (source / "config.json").is_file():
        return read_weights(source), _read_config(source / "config.json")
    state = read_weights(source)
    if form_of(state) != "open_clip":
        raise PallavaError(f"'{source}' is not an open_clip checkpoint, and no config.json describes it")
    if not model_name:
        raise PallavaError(
            f"'{source}' does not say which model it holds; name it by --model-name, such as ViT-B-16-quickgelu"
        )
    has_text = "token_embedding.weight" in state or "text.token_embedding.weight" in state
    described = read_description(model_name, has_text=has_text)
    return state, huggingface_config(described) if has_text else huggingface_vision_config(described)


def form_of(state: Mapping[str, Tensor]) -> Form:
    """Detect the form of a state dict by its keys.

    Raises:
        PallavaError: It has none of the three.
    """
    if any(key.startswith("visual.") for key in state):
        return "open_clip"
    if any("post_layrnorm" in key for key in state):
        return "published"
    if any(key.startswith("vision_model.") for key in state):
        return "huggingface"
    raise PallavaError(
        "the weights are not those of a known CLIP ViT: expected a key that begins with 'visual.' (open_clip) or "
        f"'vision_model.' (Hugging Face, PLIP), got {sorted(state)[:3]}"
    )


def convert_state(state: Mapping[str, Tensor], to: Form) -> StateDict:
    """Convert the weights of a CLIP, or of its vision tower alone, to another form.

    Args:
        state: Weights in any of the forms.
        to: The target form; "published" has room for the vision tower only, and drops the rest.

    Returns:
        The weights under the keys of the target form.

    Raises:
        PallavaError: A key is in no table, or the other form has no room for it.
    """
    form = form_of(state)
    if to == "published":
        state = {key: value for key, value in state.items() if key.startswith(_VISION)}
    elif to == "huggingface" and "logit_bias" in state:
        raise PallavaError(
            "the weights were trained with SigLIP's loss, and a Hugging Face CLIP cannot hold logit_bias; "
            "convert to the published form, which is the vision tower alone"
        )
    return _FROM_HUGGINGFACE[to](_TO_HUGGINGFACE[form](state))


def open_clip_to_huggingface(state: Mapping[str, Tensor]) -> StateDict:
    """Rename open_clip's keys, cut its (3D, D) matrix of query, key and value, and transpose the projections.

    Raises:
        PallavaError: A key is in no table.
    """
    projections, result = dict(_TRANSPOSED), {}
    for key, value in state.items():
        key = key.removeprefix("text.")  # where open_clip built the text tower as a module of its own
        if key in projections:
            result[projections[key]] = value.T.contiguous()
            continue
        renamed = _rename(key, _BEGINNINGS, _BLOCK_PARTS)
        if ".in_proj_" not in renamed:
            result[renamed] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            result[renamed.replace("in_proj_", f"{name}_proj.")] = part.clone()
    return result


def _to_open_clip(state: Mapping[str, Tensor]) -> StateDict:
    tables = (_BEGINNINGS, _BLOCK_PARTS, _TRANSPOSED)
    beginnings, parts, projections = (tuple((new, old) for old, new in table) for table in tables)
    transposed, result = dict(projections), {}
    for key, value in state.items():
        if key in transposed:
            result[transposed[key]] = value.T.contiguous()
        elif ".q_proj." in key:
            whole = torch.cat([state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"])
            result[_rename(key.replace(".q_proj.", ".in_proj_"), beginnings, parts)] = whole
        elif ".k_proj." not in key and ".v_proj." not in key and not key.endswith(".position_ids"):
            result[_rename(key, beginnings, parts)] = value
    return result


def _to_published(state: Mapping[str, Tensor]) -> StateDict:
    """Return the vision tower under the keys of ``plip_80w_196token.bin``, with its buffer of position ids."""
    misspelt = tuple((ours, published) for published, ours in PLIP_RENAMES if ours is not None)
    tower = {key: value for key, value in state.items() if key.startswith("vision_model.")}
    position_ids = torch.arange(len(tower[_POSITIONS]))[None]  # (1, patches + class token)
    return {_POSITION_IDS: position_ids, **rename_keys(tower, misspelt)}


_Change = Callable[[Mapping[str, Tensor]], StateDict]
_TO_HUGGINGFACE: Mapping[Form, _Change] = {
    "open_clip": open_clip_to_huggingface,
    "huggingface": dict,
    "published": lambda state: rename_keys(state, PLIP_RENAMES),
}
_FROM_HUGGINGFACE: Mapping[Form, _Change] = {
    "open_clip": _to_open_clip,
    "huggingface": dict,
    "published": _to_published,
}


def huggingface_vision_config(description: Mapping[str, Any]) -> CLIPVisionConfig:
    """Return transformers' configuration of the vision tower of a model that open_clip describes.

    Args:
        description: ``embed_dim``, ``vision_cfg`` and perhaps ``quick_gelu``.

    Raises:
        PallavaError: It is not a plain CLIP ViT.
    """
    tower = _sizes(description, "vision_cfg", _VISION_SIZES)
    return CLIPVisionConfig(
        **_tower_sizes(tower, description),
        num_attention_heads=tower["width"] // tower["head_width"],
        image_size=_side(tower, "image_size"),
        patch_size=_side(tower, "patch_size"),
    )


def huggingface_config(description: Mapping[str, Any]) -> CLIPConfig:
    """Return transformers' configuration of a model that open_clip describes.

    Args:
        description: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and perhaps ``quick_gelu``.

    Raises:
        PallavaError: It is not a plain CLIP ViT.
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
    """Return open_clip's description of a model that transformers describes; no ``text_cfg`` for a vision tower.

    Raises:
        PallavaError: open_clip cannot build it.
    """
    vision = _vision_of(config)
    text = config.text_config if isinstance(config, CLIPConfig) else None
    act = _shared_value("hidden_act", vision, text)
    if act not in _ACTIVATIONS.values():
        raise PallavaError(f"open_clip cannot build the activation {act!r}, only {' and '.join(_ACTIVATIONS.values())}")
    if _shared_value("layer_norm_eps", vision, text) != _LAYER_NORM_EPS:
        raise PallavaError(f"layer_norm_eps must be open_clip's {_LAYER_NORM_EPS}, got {vision.layer_norm_eps}")
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
    if text is not None:
        described["text_cfg"] = {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        }
    return described


def _rename(key: str, beginnings: _KeyTable, parts: _KeyTable) -> str:
    for old, new in beginnings:
        if key.startswith(old):
            renamed = new + key.removeprefix(old)
            for old_part, new_part in parts:
                renamed = renamed.replace(old_part, new_part)
            return renamed
    raise PallavaError(f"the weight {key!r} is not part of a plain CLIP ViT: no other form has a name for it")


def _sizes(description: Mapping[str, Any], part: str, sizes: set[str]) -> dict[str, Any]:
    """Return a tower's sizes with open_clip's defaults; refuse what makes it something else than a CLIP ViT."""
    from open_clip import model  # takes seconds to import

    defaults = vars(model.CLIPVisionCfg() if part == "vision_cfg" else model.CLIPTextCfg())
    if not isinstance(description.get(part), Mapping) or "embed_dim" not in description:
        raise PallavaError(f"an open_clip model is described by embed_dim, vision_cfg and text_cfg; {part} is missing")
    given = {**defaults, **description[part]}
    other = [k for k in given.keys() - sizes - _HARMLESS if k not in defaults or given[k] != defaults[k]]
    if other or not isinstance(given["layers"], int):
        found = ", ".join(f"{key}={given[key]}" for key in sorted(other)) or f"layers={given['layers']}"
        raise PallavaError(f"the encoder must be a plain CLIP ViT, but its {part} has {found}")
    return given


def _side(tower: Mapping[str, Any], name: str) -> int:
    """Return a side in pixels, which open_clip takes as a pair of height and width too."""
    value = tower[name]
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
        raise PallavaError(f"the encoder's tiles and patches are square, but {name} is {value}; give one number")
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
    """Return a setting that open_clip has once for both towers."""
    value = getattr(vision, name)
    if text is not None and getattr(text, name) != value:
        raise PallavaError(f"open_clip has one {name} for both towers; here they are {value} and {getattr(text, name)}")
    return value


def _read_config(path: Path) -> AnyConfig:
    values = read_json(path)
    if "vision_config" in values:
        return CLIPConfig.from_dict(values)
    if "hidden_size" not in values:
        raise PallavaError(f"'{path}' does not describe a CLIP: neither vision_config nor hidden_size is in it")
    return CLIPVisionConfig.from_dict(values)


def _vision_of(config: AnyConfig) -> CLIPVisionConfig:
    return config.vision_config if isinstance(config, CLIPConfig) else config


def _fill(kind: Any, config: AnyConfig, state: StateDict, source: object) -> Any:
    """Build a model from its configuration and exactly these weights."""
    with init_empty_weights(include_buffers=False):
        model = kind(config)
    state = {key: torch.nn.Parameter(v) for key, v in state.items() if not key.endswith(".position_ids")}
    load_strictly(model, state, source=source)
    return model


def _write(to: Form, state: StateDict, config: AnyConfig, folder: Path) -> None:
    if to == "huggingface":
        kind: Any = CLIPModel if isinstance(config, CLIPConfig) else CLIPVisionModel
        if kind is CLIPVisionModel and "visual_projection.weight" in state:
            kind = CLIPVisionModelWithProjection
        _fill(kind, config, state, "the source").save_pretrained(folder)
    elif to == "published":
        _vision_of(config).save_pretrained(folder)
        torch.save(state, folder / _PUBLISHED_WEIGHTS)
    else:
        described = open_clip_description(config)
        if "logit_bias" in state:  # without it open_clip builds a model that has no bias to load
            described["init_logit_bias"] = state["logit_bias"].item()
        write_json(folder / DESCRIPTION, described)
        torch.save(state, folder / WEIGHTS)


def _write_tokenizer(source: Path, config: CLIPConfig, folder: Path) -> None:
    """Copy the tokenizer beside the source, or write CLIP's own if the vocabulary has its size."""
    own = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    for file in own:
        shutil.copy(file, folder)
    if own or config.text_config.vocab_size != _CLIP_VOCABULARY:
        return
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    clip = SimpleTokenizer()
    special = dict(zip(list(clip.encoder)[-2:], ("<|startoftext|>", "<|endoftext|>"), strict=True))
    vocabulary = {special.get(token, token): number for token, number in clip.encoder.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in clip.bpe_ranks)])
    write_json(folder / "vocab.json", vocabulary, ensure_ascii=False, indent=None)
    write_text(folder / "merges.txt", merges + "\n")
    length = config.text_config.max_position_embeddings
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length).save_pretrained(
        folder
    )
