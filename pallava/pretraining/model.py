"""The model of a pretraining: what the trainer will build, and the folder that the rest of pallava opens."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor

from pallava.errors import PallavaError
from pallava.io.files import whole_file, whole_folder, write_json
from pallava.model import clip
from pallava.model.weights import read_weights
from pallava.open_clip_weights import made_with_quick_gelu

ENCODER = "encoder"
RUN = "run"
"""Name of the trainer's own folder in ours: logs, parameters, checkpoints."""
LATEST = Path(RUN, "checkpoints", "epoch_latest.pt")
_RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}  # Pillow's numbers


def describe(model: str, pretrained: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the description of a model (name or file) as the weights and the trainer's options change it.

    Refuse weights that do not exist, and whatever is not a plain CLIP ViT, which the encoder must be.
    """
    described: dict[str, Any] = json.loads(json.dumps(clip.read_description(model)))  # a deep copy
    name = Path(model).stem if model.endswith(".json") else model
    _check_weights(name, pretrained)
    if parsed.force_image_size:
        size = parsed.force_image_size
        described["vision_cfg"]["image_size"] = size[0] if len(size) == 1 else size
    if parsed.force_context_length:
        described["text_cfg"]["context_length"] = parsed.force_context_length
    if parsed.force_quick_gelu or made_with_quick_gelu(name, pretrained):
        described["quick_gelu"] = True
    if parsed.force_custom_text:
        described["custom_text"] = True
    if parsed.siglip:
        described["init_logit_bias"] = -10  # as the trainer does; without it the model has no bias to load
    clip.huggingface_vision_config(described)
    return described


def _check_weights(model: str, pretrained: str) -> None:
    import open_clip  # takes seconds

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise PallavaError(
            f"weights {pretrained!r} of {model} must be a file or a tag of open_clip's ({', '.join(tags) or 'none'}); "
            "choose by --pretrained, `none` for random weights"
        )


def export(out: Path, description: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> None:
    """Write the last checkpoint's whole model, ``open_clip.json`` and ``open_clip.pt``, and at last ``encoder/``.

    The preprocessing is open_clip's: ``size``, ``mean``, ``std``, ``interpolation`` and ``resize_mode``.
    """
    state = read_weights(out / LATEST)
    write_json(out / clip.DESCRIPTION, description)
    with whole_file(out / clip.WEIGHTS, "wb") as file:
        torch.save(state, file)
    encoder = clip.open_clip_vision(description, state, out / LATEST)
    with whole_folder(out / ENCODER, replace=True) as folder:
        encoder.save_pretrained(folder)
        image_processor(preprocessing).save_pretrained(folder)


def image_processor(preprocessing: Mapping[str, Any]) -> CLIPImageProcessor:
    """Return open_clip's preprocessing as an image processor of transformers."""
    size = preprocessing["size"]
    return clip.make_image_processor(
        size if isinstance(size, int) else size[0],
        squash=preprocessing["resize_mode"] == "squash",
        resample=_RESAMPLE[preprocessing["interpolation"]],
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
    )
