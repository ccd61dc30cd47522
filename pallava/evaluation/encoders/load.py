"""Opening a CLIP with both towers, from open_clip or transformers, behind one small interface."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from pallava.errors import PallavaError
from pallava.io.files import write_text
from pallava.io.hashing import hash_bytes, hash_json, hash_text
from pallava.model import load_image_processor
from pallava.model.clip import DESCRIPTION, WEIGHTS, find_image_processor, read_description
from pallava.model.loading import load_tokenizer
from pallava.model.weights import build_with_weights, load_strictly, read_json, read_weights, rename_keys
from pallava.open_clip_weights import made_with_quick_gelu, read_wrapped_keys
from pallava.tiling import TileSpec

_OPEN_CLIP_SCHEMAS = ("hf-hub:", "local-dir:")
_DESCRIPTIONS = (DESCRIPTION, "open_clip_config.json")
_WEIGHTS = (WEIGHTS, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_MAX_ASPECT = 64
_PROBE = "An H&E image of ductal carcinoma in situ, grade 3."
_CHOICES = (
    "give a folder of `pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint with --model-name, "
    "or an open_clip model name with --pretrained"
)


@dataclass(frozen=True)
class Encoder:
    """A CLIP that embeds images and texts in one space."""

    identity: str  # a hash of weights, description and preprocessing: equal only if all embeddings are
    preprocess: Callable[[Image.Image], Tensor]  # from an RGB image to (3, P, P)
    encode_image: Callable[[Tensor], Tensor]  # from (B, 3, P, P) to (B, D)
    encode_text: Callable[[list[str]], Tensor]  # from B texts to (B, D)
    logit_scale: float  # of the cosine of both
    device: torch.device


def model_kind(source: str) -> str:
    """Return "pallava" for a folder of a whole PA-LLaVA, which answers, and "encoder" for all else, which embeds."""
    return "pallava" if _model_type(Path(source)) == "pallava" else "encoder"


def is_whole_clip(folder: Path) -> bool:
    """Return whether a folder describes a CLIP with its text tower, in a form that `load_encoder` opens."""
    return _find(folder, _DESCRIPTIONS) is not None or _model_type(folder) == "clip"


def load_encoder(
    source: str, *, model_name: str | None = None, pretrained: str | None = None, device: str = "cpu"
) -> Encoder:
    """Load a CLIP in evaluation mode and float32.

    The source is a folder with an open_clip description and weights; a Hugging Face CLIP folder; an open_clip
    checkpoint, with open_clip's name of its model or a JSON file that describes it; or an open_clip model name, with
    the name of pretrained weights.

    Raises:
        PallavaError: The source is none of these, has no text tower, or a weight is missing, left over or of another
            shape.
    """
    path = Path(source)
    if path.is_dir():
        description = _find(path, _DESCRIPTIONS)
        return _open_clip_folder(path, description, device) if description else _hugging_face_folder(path, device)
    if path.is_file():
        if model_name is None:
            raise PallavaError(f"the checkpoint '{path}' needs --model-name, such as --model-name ViT-B-16-quickgelu")
        return from_open_clip(*build_open_clip(read_description(model_name), path), device=device)
    return _named_open_clip(source, pretrained, device)


def from_open_clip(
    model: Any, tokenize: Callable[[list[str]], Tensor], preprocessing: Any = None, *, device: str = "cpu"
) -> Encoder:
    """Make an encoder of an open_clip model, its tokenizer, and values of `PreprocessCfg` in place of the model's."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    model = model.eval().to(device)
    preprocessing = PreprocessCfg(**merge_preprocess_dict(model.visual.preprocess_cfg, preprocessing or {}))
    transform: Any = image_transform_v2(preprocessing, is_train=False)
    is_cropped = preprocessing.resize_mode == "shortest"
    return Encoder(
        # The ids stand for the tokenizer.
        identity=_identity(model, [_structure(model), asdict(preprocessing), tokenize([_PROBE]).tolist()]),
        preprocess=lambda image: transform(_trim(image) if is_cropped else image),
        encode_image=lambda pixels: model.encode_image(pixels.to(device)),
        encode_text=lambda texts: model.encode_text(tokenize(texts).to(device)),
        logit_scale=model.logit_scale.detach().exp().item(),
        device=torch.device(device),
    )


def _open_clip_folder(folder: Path, description_file: Path, device: str) -> Encoder:
    values = read_json(description_file)
    description = values.get("model_cfg", values)
    if "text_cfg" not in description:
        _refuse(folder, "clip_vision_model")
    model, tokenize = build_open_clip(description, _find(folder, _WEIGHTS) or folder)
    stored = values.get("preprocess_cfg") or _beside(folder)
    return from_open_clip(model, tokenize, stored, device=device)


def build_open_clip(description: Mapping[str, Any], weights: Path | None = None) -> tuple[Any, Any]:
    """Return the model that open_clip describes so, with these weights or random ones, and its tokenizer."""
    import open_clip

    state = read_weights(weights) if weights else {}
    if "logit_bias" in state:  # the trainer gives SigLIP's bias to the model beside the description
        description = {"init_logit_bias": 0.0, **description}
    text = json.dumps(description)
    name = f"pallava-{hash_text(text)}"
    with tempfile.TemporaryDirectory() as folder:  # open_clip takes files only, and names a model after its file
        file = Path(folder, f"{name}.json")
        write_text(file, text)
        open_clip.add_model_config(file)
    logging.disable(logging.WARNING)  # about random weights
    try:
        model = open_clip.create_model(name, pretrained_text=False)
    finally:
        logging.disable(logging.NOTSET)
    if weights:
        load_strictly(model, state, source=weights)
    return model, open_clip.get_tokenizer(name)


def _named_open_clip(source: str, pretrained: str | None, device: str) -> Encoder:
    import open_clip

    what: dict[str, Any] = {}
    if not source.startswith(_OPEN_CLIP_SCHEMAS):
        if source not in open_clip.list_models():
            raise PallavaError(f"{source!r} is neither a path nor an open_clip model name; {_CHOICES}")
        tags = open_clip.list_pretrained_tags_by_model(source)
        if pretrained not in tags:
            raise PallavaError(
                f"{source} needs --pretrained, got {pretrained or 'none'}; choose {', '.join(tags) or 'another model'}"
            )
        what = {"pretrained": pretrained, "force_quick_gelu": made_with_quick_gelu(source, pretrained)}
    read_wrapped_keys()
    try:
        model = open_clip.create_model(source, require_pretrained=True, **what)
    except (OSError, RuntimeError, ValueError) as error:  # what downloading and reading weights raise
        raise PallavaError(f"open_clip cannot open {source!r}: {' '.join(str(error).split())}") from None
    return from_open_clip(model, open_clip.get_tokenizer(source), device=device)


def _hugging_face_folder(folder: Path, device: str) -> Encoder:
    if (kind := _model_type(folder)) != "clip":
        _refuse(folder, kind)
    config = CLIPConfig.from_pretrained(folder)
    # Older transformers saved a buffer of each tower that newer ones recompute.
    state = rename_keys(read_weights(folder), (("embeddings.position_ids", None),))
    model = build_with_weights(CLIPModel, config, state, folder).to(device)
    processor, tokenizer = load_image_processor(folder), load_tokenizer(folder)

    def preprocess(image: Image.Image) -> Tensor:
        # Without the data format, transformers takes a picture of height 3 for one of three channels.
        given = processor(_trim(image), return_tensors="pt", input_data_format="channels_last")
        return given["pixel_values"][0]

    def encode_text(texts: list[str]) -> Tensor:
        length = config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        return model.get_text_features(**tokens)

    return Encoder(
        identity=_identity(model, [config.to_diff_dict(), processor.to_dict(), tokenizer(_PROBE).input_ids]),
        preprocess=preprocess,
        encode_image=lambda pixels: model.get_image_features(pixel_values=pixels.to(device)),
        encode_text=encode_text,
        logit_scale=model.logit_scale.detach().exp().item(),
        device=torch.device(device),
    )


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _model_type(folder: Path) -> object:
    config = folder / "config.json"
    return read_json(config).get("model_type") if config.is_file() else None


def _refuse(folder: Path, kind: object) -> NoReturn:
    if kind == "clip_vision_model":
        raise PallavaError(f"'{folder}' has a vision tower alone; a text tower is needed to compare images with texts")
    found = f"a model of type {kind!r}" if kind else "neither config.json nor an open_clip description"
    raise PallavaError(f"'{folder}' is not an encoder with a text tower, got {found}; {_CHOICES}")


def _beside(folder: Path) -> dict[str, Any]:
    """Read the preprocessing of a Hugging Face image processor beside the weights."""
    processor = find_image_processor(folder)
    if processor is None:
        return {}
    spec = TileSpec.from_image_processor(processor)
    interpolation = "bicubic" if spec.resample == Image.Resampling.BICUBIC else "bilinear"
    values = {"size": spec.size, "mean": spec.mean, "std": spec.std, "interpolation": interpolation}
    return values if processor.do_center_crop else {**values, "resize_mode": "squash"}


def _trim(image: Image.Image) -> Image.Image:
    """Return the middle of a long strip: the crop leaves nothing of the rest, but all of it would be resized first."""
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _structure(model: nn.Module) -> list[object]:
    """Return what no weight shows, such as the activation and the number of heads."""
    plain = (bool, int, float, str)
    settings = [
        (name, {key: value for key, value in vars(module).items() if isinstance(value, plain) and key[0] != "_"})
        for name, module in model.named_modules()
    ]
    return [repr(model), settings]


def _identity(model: nn.Module, description: list[object]) -> str:
    parts = [hash_json(description)]
    for name, tensor in sorted(model.state_dict().items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hash_bytes(content)}")
    return hash_text(*parts)
