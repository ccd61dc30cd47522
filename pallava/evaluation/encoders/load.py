"""Opening a CLIP with both towers, as open_clip or transformers keep it, behind one small interface."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

from pallava.errors import PallavaError
from pallava.model.clip import DESCRIPTION, WEIGHTS, find_image_processor, read_description
from pallava.model.weights import load_strictly, read_json, read_weights, rename_keys
from pallava.open_clip_weights import made_with_quick_gelu
from pallava.tiling import TileSpec

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

_OPEN_CLIP_SCHEMAS = ("hf-hub:", "local-dir:")
_DESCRIPTIONS = (DESCRIPTION, "open_clip_config.json")
_WEIGHTS = (WEIGHTS, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_MAX_ASPECT = 64
_PROBE = "An H&E image of ductal carcinoma in situ, grade 3."
_GIVE = (
    "Give a folder of `pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint with --model-name, "
    "or an open_clip model name with --pretrained."
)


@dataclass(frozen=True)
class Encoder:
    """A CLIP that gives images and texts a place in one space.

    Attributes:
        name: For reports.
        identity: Hash of weights, description and preprocessing: equal only where all embeddings are.
        preprocess: An RGB image to (3, P, P).
        encode_image: (B, 3, P, P) to (B, D).
        encode_text: B texts to (B, D).
        logit_scale: Factor of the cosine similarity.
        device: Where it computes.
    """

    name: str
    identity: str
    preprocess: Callable[[Image.Image], Tensor]
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[list[str]], Tensor]
    logit_scale: float
    device: torch.device


def model_kind(source: str) -> str:
    """Tells a folder of the whole PA-LLaVA ("pallava"), which answers, from an encoder ("encoder"), which embeds."""
    config = Path(source) / "config.json"
    return "pallava" if config.is_file() and read_json(config).get("model_type") == "pallava" else "encoder"


def is_whole_clip(folder: Path) -> bool:
    """Whether a folder describes a CLIP with its text tower, in one of the forms that `load_encoder` opens."""
    if any((folder / name).is_file() for name in _DESCRIPTIONS):
        return True
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "clip"


def load_encoder(
    source: str, *, model_name: str | None = None, pretrained: str | None = None, device: str = "cpu"
) -> Encoder:
    """Opens an encoder, in evaluation mode and float32.

    Args:
        source: A folder with an open_clip description and weights, a Hugging Face CLIP folder, an open_clip
            checkpoint, or a name that open_clip knows.
        model_name: Of a checkpoint: open_clip's name of its model, or a JSON file that describes it.
        pretrained: open_clip's name of the weights of a model that `source` names.
        device: Where it shall compute.

    Raises:
        PallavaError: It is none of these, has no text tower, or a weight is missing, left over or of another shape.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in _DESCRIPTIONS):
            return _open_clip_folder(path, device)
        return _hugging_face_folder(path, device)
    if path.is_file():
        if model_name is None:
            raise PallavaError(f"{path} is a checkpoint: name its model with --model-name, such as ViT-B-16-quickgelu.")
        model, tokenize = _build_open_clip(read_description(model_name), path)
        return from_open_clip(model, tokenize, _own_preprocessing(model), name=path.name, device=device)
    return _named_open_clip(source, pretrained, device)


def from_open_clip(
    model: Any, tokenize: Callable[[list[str]], Tensor], preprocessing: PreprocessCfg, *, name: str, device: str = "cpu"
) -> Encoder:
    """An encoder out of an open_clip model, its tokenizer and its preprocessing."""
    from open_clip.transform import image_transform_v2

    model = model.eval().to(device)
    transform: Any = image_transform_v2(preprocessing, is_train=False)
    is_cropped = preprocessing.resize_mode == "shortest"
    return Encoder(
        name=name,
        # The ids stand for the tokenizer.
        identity=_identity([_structure(model), asdict(preprocessing), tokenize([_PROBE]).tolist()], model.state_dict()),
        preprocess=lambda image: transform(_trimmed(image) if is_cropped else image),
        encode_image=lambda pixels: model.encode_image(pixels.to(device)),
        encode_text=lambda texts: model.encode_text(tokenize(texts).to(device)),
        logit_scale=model.logit_scale.detach().exp().item(),
        device=torch.device(device),
    )


def _open_clip_folder(folder: Path, device: str) -> Encoder:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    values = next(read_json(folder / name) for name in _DESCRIPTIONS if (folder / name).is_file())
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder)
    description = values.get("model_cfg", values)
    if "text_cfg" not in description:
        _refuse(folder, "clip_vision_model")
    model, tokenize = _build_open_clip(description, weights)
    stored = values.get("preprocess_cfg") or _beside(folder)
    preprocessing = PreprocessCfg(**merge_preprocess_dict(_own_preprocessing(model), stored))
    return from_open_clip(model, tokenize, preprocessing, name=folder.name, device=device)


def _build_open_clip(description: Mapping[str, Any], weights: Path) -> tuple[Any, Any]:
    """The model with its weights, and its tokenizer."""
    import open_clip

    state = read_weights(weights)
    if "logit_bias" in state:  # the trainer gives SigLIP's bias to the model beside the description
        description = {"init_logit_bias": 0.0, **description}
    text = json.dumps(description)
    name = f"pallava-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    with tempfile.TemporaryDirectory() as folder:  # open_clip takes files only, and names a model after its file
        file = Path(folder, f"{name}.json")
        file.write_text(text, encoding="utf-8")
        open_clip.add_model_config(file)
    logging.disable(logging.WARNING)  # that the weights are random, which they are for a moment
    try:
        model = open_clip.create_model(name, pretrained_text=False)
    finally:
        logging.disable(logging.NOTSET)
    load_strictly(model, state, source=weights)
    return model, open_clip.get_tokenizer(name)


def _named_open_clip(source: str, pretrained: str | None, device: str) -> Encoder:
    import open_clip

    if source.startswith(_OPEN_CLIP_SCHEMAS):
        what: dict[str, Any] = {}
    elif source not in open_clip.list_models():
        raise PallavaError(f"No model at {source}: there is no such path, and open_clip knows no such name. {_GIVE}")
    else:
        tags = open_clip.list_pretrained_tags_by_model(source)
        if pretrained not in tags:
            raise PallavaError(
                f"Which weights of {source}? --pretrained is {pretrained or 'not given'}; open_clip has: "
                f"{', '.join(tags) or 'none'}."
            )
        what = {"pretrained": pretrained, "force_quick_gelu": made_with_quick_gelu(source, pretrained)}
    try:
        model = open_clip.create_model(source, require_pretrained=True, **what)
    except (OSError, RuntimeError, ValueError) as error:  # what downloading and reading weights raise
        raise PallavaError(f"open_clip cannot open {source}: {' '.join(str(error).split())}") from None
    name = f"{source} {pretrained}" if pretrained else source
    return from_open_clip(model, open_clip.get_tokenizer(source), _own_preprocessing(model), name=name, device=device)


def _hugging_face_folder(folder: Path, device: str) -> Encoder:
    from accelerate import init_empty_weights
    from transformers import CLIPConfig, CLIPModel

    from pallava.model import load_image_processor
    from pallava.model.loading import open_tokenizer

    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind != "clip":
        _refuse(folder, kind)
    config = CLIPConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = CLIPModel(config)
    # Older transformers saved a buffer of each tower that newer ones recompute.
    load_strictly(model, rename_keys(read_weights(folder), (("embeddings.position_ids", None),)), source=folder)
    model = model.eval().to(device)
    processor, tokenizer = load_image_processor(folder), open_tokenizer(folder)

    def preprocess(image: Image.Image) -> Tensor:
        # The channels are told, since transformers takes a picture of height 3 for one of three channels.
        given = processor(_trimmed(image), return_tensors="pt", input_data_format="channels_last")
        return given["pixel_values"][0]

    def encode_text(texts: list[str]) -> Tensor:
        length = config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        return model.get_text_features(**tokens)

    return Encoder(
        name=folder.name,
        identity=_identity(
            [config.to_diff_dict(), processor.to_dict(), tokenizer(_PROBE).input_ids], model.state_dict()
        ),
        preprocess=preprocess,
        encode_image=lambda pixels: model.get_image_features(pixel_values=pixels.to(device)),
        encode_text=encode_text,
        logit_scale=model.logit_scale.detach().exp().item(),
        device=torch.device(device),
    )


def _refuse(folder: Path, kind: object) -> NoReturn:
    if kind == "clip_vision_model":
        raise PallavaError(
            f"{folder} holds a vision tower alone: without a text tower there is nothing to compare with."
        )
    found = f"a model of type {kind!r}" if kind else "neither config.json nor an open_clip description"
    raise PallavaError(f"{folder} is no encoder with a text tower: found {found}. {_GIVE}")


def _beside(folder: Path) -> dict[str, Any]:
    """The preprocessing that a Hugging Face image processor beside the weights holds."""
    processor = find_image_processor(folder)
    if processor is None:
        return {}
    spec = TileSpec.from_image_processor(processor)
    interpolation = "bicubic" if spec.resample == Image.Resampling.BICUBIC else "bilinear"
    values = {"size": spec.size, "mean": spec.mean, "std": spec.std, "interpolation": interpolation}
    return values if processor.do_center_crop else {**values, "resize_mode": "squash"}


def _own_preprocessing(model: Any) -> PreprocessCfg:
    from open_clip.transform import PreprocessCfg

    return PreprocessCfg(**model.visual.preprocess_cfg)


def _trimmed(image: Image.Image) -> Image.Image:
    """The middle of a long strip: of the rest nothing is left by the crop, but all of it would be resized first."""
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _structure(model: nn.Module) -> list[object]:
    """What no weight shows, such as the activation and the number of heads."""
    plain = (bool, int, float, str)
    settings = [
        (name, {key: value for key, value in vars(module).items() if isinstance(value, plain) and key[0] != "_"})
        for name, module in model.named_modules()
    ]
    return [repr(model), settings]


def _identity(description: Iterable[object], state: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(list(description), sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
