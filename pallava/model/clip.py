"""CLIP ViTs in three forms: open_clip's, Hugging Face's and the published PLIP's; read, converted, written.

Hugging Face's form is in the middle. No tensor is computed with; it is renamed, transposed, cut or joined, so that a
round trip gives back every bit. Keys, descriptions and files of a form change together, hence one long file, beside
the table of its names. D is the width of a tower.
"""

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
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
from pallava.io.files import read_package_data, whole_folder, write_json, write_text
from pallava.model.weights import (
    PLIP_RENAMES,
    Renames,
    StateDict,
    StrPath,
    build_with_weights,
    read_json,
    read_weights,
    rename_keys,
)
from pallava.tiling import TileSpec

Form = Literal["open_clip", "huggingface", "published"]
FORMS: tuple[Form, ...] = get_args(Form)
_Config: TypeAlias = CLIPConfig | CLIPVisionConfig

DESCRIPTION, WEIGHTS = "open_clip.json", "open_clip.pt"
"""Files of an open_clip model in a folder: its description and its state dict."""
_PUBLISHED_WEIGHTS = "plip_80w_196token.bin"

_VISION = ("visual.", "vision_model.", "visual_projection.")  # beginnings of the tower's keys, in every form
_READ: Renames = (*PLIP_RENAMES, (".position_ids", None))  # from the published form, or an older one of Hugging Face
_ACTIVATIONS = {False: "gelu", True: "quick_gelu"}
_LAYER_NORM_EPS = 1e-5  # open_clip's only one
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_CLIP_VOCABULARY = 49408

# What a description may say beside the sizes without changing a CLIP ViT's features at inference.
_HARMLESS = {"patch_dropout", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "eos_id", "pad_id"}


def convert_encoder(source: StrPath, out: StrPath, to: Form, model_name: str = "") -> Path:
    """Convert a CLIP, or a vision tower alone, into a new folder of another form, with its preprocessing.

    `source` is a Hugging Face or the published folder, a folder with ``open_clip.json`` and ``open_clip.pt``, or an
    open_clip checkpoint, which `model_name` names or a JSON file of that name describes.

    Raises:
        PallavaError: The source is none of these, the other form has no room for it, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    state, config = _read_clip(source, model_name)
    state = _convert_state(state, to)
    with whole_folder(out) as folder:
        _write(to, state, config, folder)
        size = getattr(config, "vision_config", config).image_size
        (find_image_processor(source) or make_image_processor(size)).save_pretrained(folder)
        if to == "huggingface" and isinstance(config, CLIPConfig):
            _write_tokenizer(source, config, folder)
    return out


def load_projected_vision(source: StrPath, model_name: str = "") -> tuple[CLIPVisionModelWithProjection, TileSpec]:
    """Open a whole CLIP's vision tower with projection, and its preprocessing; takes what `convert_encoder` takes.

    Raises:
        PallavaError: There is no such source, it is a vision tower alone, or its weights do not fit.
    """
    state, config = _read_clip(Path(source), model_name)
    vision = getattr(config, "vision_config", config)
    vision.projection_dim = config.projection_dim
    tower = {key: value for key, value in state.items() if key.startswith(_VISION)}
    tower = {key: value.float() for key, value in _convert_state(tower, "huggingface").items()}
    if "visual_projection.weight" not in tower:
        raise PallavaError(f"'{source}' is a vision tower alone and shares no space with texts; give the whole CLIP")
    processor = find_image_processor(source) or make_image_processor(vision.image_size)
    opened = build_with_weights(CLIPVisionModelWithProjection, vision, tower, source)
    return opened, TileSpec.from_image_processor(processor)


def open_clip_vision(description: Mapping[str, Any], state: Mapping[str, Tensor], source: object) -> CLIPVisionModel:
    """Build the vision tower of a model that open_clip describes, from its weights, without its projection."""
    visual = {key: value for key, value in state.items() if key.startswith("visual.") and key != "visual.proj"}
    config = huggingface_vision_config(description)
    return build_with_weights(CLIPVisionModel, config, open_clip_to_huggingface(visual), source)


def make_image_processor(size: int, *, squash: bool = False, **values: Any) -> CLIPImageProcessor:
    """Build preprocessing to squares of so many pixels; CLIP's own but for the values given, such as `image_mean`.

    With `squash` both sides are resized; otherwise the shorter side is, and the middle is cropped.
    """
    square = {"height": size, "width": size}
    if squash:
        return CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False, **values)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **values)


def find_image_processor(source: StrPath) -> CLIPImageProcessor | None:
    """Open the preprocessing beside a CLIP's weights, or in the ``encoder`` folder of a training; None without any."""
    places = (Path(source), Path(source) / "encoder")
    found = [place for place in places if (place / "preprocessor_config.json").is_file()]
    return CLIPImageProcessor.from_pretrained(found[0]) if found else None


def read_description(model_name: str, *, has_text: bool = True) -> dict[str, Any]:
    """Read the description of an open_clip model, by open_clip's name of it or from a JSON file.

    With `has_text` the file must describe a text tower, which a vision tower alone has not.

    Raises:
        PallavaError: There is no such name, or the file is not such a description.
    """
    if not model_name.endswith(".json"):
        import open_clip  # takes seconds to import

        if described := open_clip.get_model_config(model_name):
            return dict(described)
        raise PallavaError(
            f"open_clip knows no model named {model_name!r}; see open_clip.list_models(), or give a .json file"
        )
    described = read_json(Path(model_name))
    required = {"embed_dim", "vision_cfg", "text_cfg"} if has_text else {"embed_dim", "vision_cfg"}
    if missing := required - (described.keys() if isinstance(described, dict) else set()):
        raise PallavaError(f"'{model_name}' does not describe an open_clip model: {', '.join(sorted(missing))} missing")
    return described


def _read_clip(source: Path, model_name: str = "") -> tuple[StateDict, _Config]:
    if not source.exists():
        raise PallavaError(f"no encoder at '{source}': the path does not exist")
    if (source / DESCRIPTION).is_file():
        model_name = model_name or str(source / DESCRIPTION)
        source = source / WEIGHTS
    elif (source / "config.json").is_file():
        values = read_json(source / "config.json")
        if "vision_config" not in values and "hidden_size" not in values:
            raise PallavaError(f"'{source}/config.json' must have vision_config or hidden_size, as that of a CLIP has")
        kind = CLIPConfig if "vision_config" in values else CLIPVisionConfig
        return read_weights(source), kind.from_dict(values)
    state = read_weights(source)
    if _form_of(state) != "open_clip":
        raise PallavaError(f"'{source}' is not an open_clip checkpoint, and no config.json describes it")
    if not model_name:
        raise PallavaError(
            f"'{source}' does not say which model it holds; name it by --model-name, such as ViT-B-16-quickgelu"
        )
    has_text = "token_embedding.weight" in state or "text.token_embedding.weight" in state
    described = read_description(model_name, has_text=has_text)
    return state, _huggingface_config(described) if has_text else huggingface_vision_config(described)


def _form_of(state: Mapping[str, Tensor]) -> Form:
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


def _convert_state(state: Mapping[str, Tensor], to: Form) -> StateDict:
    """Convert the weights of a CLIP, or of its vision tower alone; the published form has room for the tower only."""
    form = _form_of(state)
    if to == "published":
        state = {key: value for key, value in state.items() if key.startswith(_VISION)}
    elif to == "huggingface" and "logit_bias" in state:
        raise PallavaError(
            "the weights were trained with SigLIP's loss, and a Hugging Face CLIP cannot hold logit_bias; "
            "convert to the published form, which is the vision tower alone"
        )
    state = open_clip_to_huggingface(state) if form == "open_clip" else rename_keys(state, _READ)
    if to == "open_clip":
        return _to_open_clip(state)
    return _to_published(state) if to == "published" else state


def open_clip_to_huggingface(state: Mapping[str, Tensor]) -> StateDict:
    """Rename open_clip's keys, cut its (3D, D) matrix of query, key and value, and transpose the projections.

    A key that is in no table is refused.
    """
    result = {}
    for key, value in state.items():
        renamed = _rename(key.removeprefix("text."))  # where open_clip built the text tower as a module of its own
        if ".in_proj_" in renamed:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                result[renamed.replace("in_proj_", f"{name}_proj.")] = part.clone()
        else:
            result[renamed] = _transpose_projection(renamed, value)
    return result


def _to_open_clip(state: Mapping[str, Tensor]) -> StateDict:
    result = {}
    for key, value in state.items():
        if ".q_proj." in key:
            whole = torch.cat([state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"])
            result[_rename(key.replace(".q_proj.", ".in_proj_"), back=True)] = whole
        elif ".k_proj." not in key and ".v_proj." not in key:
            result[_rename(key, back=True)] = _transpose_projection(key, value)
    return result


def _transpose_projection(huggingface_key: str, value: Tensor) -> Tensor:
    return value.T.contiguous() if huggingface_key.endswith("_projection.weight") else value


@cache
def _names(table: str, *, back: bool = False) -> dict[str, str]:
    """Return a table of clip.yaml: from open_clip's names to Hugging Face's, or back."""
    names = read_package_data(__file__)[table]
    return {new: old for old, new in names.items()} if back else names


def _rename(key: str, *, back: bool = False) -> str:
    for old, new in _names("beginnings", back=back).items():
        if key.startswith(old) if old.endswith(".") else key == old:
            renamed = new + key.removeprefix(old)
            for old_part, new_part in _names("parts", back=back).items():
                renamed = renamed.replace(old_part, new_part)
            return renamed
    raise PallavaError(f"the weight {key!r} is not part of a plain CLIP ViT: no other form has a name for it")


def _to_published(state: Mapping[str, Tensor]) -> StateDict:
    """Return the vision tower under the keys of ``plip_80w_196token.bin``, with its buffer of position ids."""
    misspelt = tuple((ours, published) for published, ours in PLIP_RENAMES if ours is not None)
    tower = {key: value for key, value in state.items() if key.startswith("vision_model.")}
    num_positions = len(state["vision_model.embeddings.position_embedding.weight"])  # patches, and the class token
    return {"vision_model.embeddings.position_ids": torch.arange(num_positions)[None], **rename_keys(tower, misspelt)}


def huggingface_vision_config(description: Mapping[str, Any]) -> CLIPVisionConfig:
    """Return transformers' configuration of the vision tower of a model that open_clip describes.

    All but a plain CLIP ViT is refused.
    """
    return CLIPVisionConfig(**_tower(description, "vision_cfg"))


def _huggingface_config(description: Mapping[str, Any]) -> CLIPConfig:
    # By the end token 2, transformers reads the token of the highest id, as open_clip does.
    text = CLIPTextConfig(**_tower(description, "text_cfg"), eos_token_id=2)
    vision = huggingface_vision_config(description)
    return CLIPConfig.from_text_vision_configs(text, vision, projection_dim=description["embed_dim"])


def _open_clip_description(config: _Config) -> dict[str, Any]:
    """Return open_clip's description of a model that transformers describes; no ``text_cfg`` for a vision tower."""
    vision = getattr(config, "vision_config", config)
    text = config.text_config if isinstance(config, CLIPConfig) else vision
    for name in ("hidden_act", "layer_norm_eps"):
        values = (getattr(vision, name), getattr(text, name))
        if values[0] != values[1]:
            raise PallavaError(f"open_clip has one {name} for both towers; here they are {values[0]} and {values[1]}")
    act = vision.hidden_act
    if act not in _ACTIVATIONS.values():
        raise PallavaError(f"open_clip cannot build the activation {act!r}, only {' and '.join(_ACTIVATIONS.values())}")
    if vision.layer_norm_eps != _LAYER_NORM_EPS:
        raise PallavaError(f"layer_norm_eps must be open_clip's {_LAYER_NORM_EPS}, got {vision.layer_norm_eps}")
    described: dict[str, Any] = {"embed_dim": config.projection_dim, "quick_gelu": act == "quick_gelu"}
    described["vision_cfg"] = _sizes_of(vision, "vision_cfg")
    described["vision_cfg"]["head_width"] = vision.hidden_size // vision.num_attention_heads
    if text is not vision:
        described["text_cfg"] = _sizes_of(text, "text_cfg")
    return described


def _sizes_of(tower: Any, part: str) -> dict[str, Any]:
    values = {ours: getattr(tower, theirs) for ours, theirs in _names(part).items()}
    return {**values, "mlp_ratio": tower.intermediate_size / tower.hidden_size}


def _tower(description: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return transformers' settings of a tower, from open_clip's and its defaults; refuse all but a plain CLIP ViT."""
    from open_clip import model  # takes seconds to import

    defaults = vars(model.CLIPVisionCfg() if part == "vision_cfg" else model.CLIPTextCfg())
    if not isinstance(description.get(part), Mapping) or "embed_dim" not in description:
        raise PallavaError(f"an open_clip model is described by embed_dim, vision_cfg and text_cfg; {part} is missing")
    given = {**defaults, **description[part]}
    others = given.keys() - _names(part).keys() - _HARMLESS - {"mlp_ratio"}
    other = [key for key in others if key not in defaults or given[key] != defaults[key]]
    if other or not isinstance(given["layers"], int):
        found = ", ".join(f"{key}={given[key]}" for key in sorted(other)) or f"layers={given['layers']}"
        raise PallavaError(f"the encoder must be a plain CLIP ViT, but its {part} has {found}")
    tower = {theirs: given[ours] for ours, theirs in _names(part).items()}
    if part == "vision_cfg":
        tower["num_attention_heads"] = given["width"] // given["head_width"]
        tower |= {name: _side(given, name) for name in ("image_size", "patch_size")}
    return {
        **tower,
        "intermediate_size": int(given["width"] * given["mlp_ratio"]),
        "hidden_act": _ACTIVATIONS[bool(description.get("quick_gelu"))],
        "layer_norm_eps": _LAYER_NORM_EPS,
        "projection_dim": description["embed_dim"],
    }


def _side(tower: Mapping[str, Any], name: str) -> int:
    """Return a side in pixels, which open_clip takes as a pair of height and width too."""
    value = tower[name]
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
        raise PallavaError(f"the encoder's tiles and patches are square, but {name} is {value}; give one number")
    return sides[0]


def _write(to: Form, state: StateDict, config: _Config, folder: Path) -> None:
    if to == "huggingface":
        kind: Any = CLIPModel if isinstance(config, CLIPConfig) else CLIPVisionModel
        if kind is CLIPVisionModel and "visual_projection.weight" in state:
            kind = CLIPVisionModelWithProjection
        build_with_weights(kind, config, state, "the source").save_pretrained(folder)
    elif to == "published":
        getattr(config, "vision_config", config).save_pretrained(folder)
        torch.save(state, folder / _PUBLISHED_WEIGHTS)
    else:
        described = _open_clip_description(config)
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
