"""From a trained open_clip model to the folder that the rest of pallava opens."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPVisionModel

from pallava.model.clip import (
    DESCRIPTION,
    WEIGHTS,
    huggingface_vision_config,
    make_image_processor,
    open_clip_to_huggingface,
)
from pallava.model.weights import load_strictly, read_weights

RUN = "run"
"""Of the trainer's own folder inside ours: logs, parameters, checkpoints."""
LATEST = Path(RUN, "checkpoints", "epoch_latest.pt")
ENCODER = "encoder"
_RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}  # Pillow's numbers


def export(out: Path, description: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> None:
    """Writes the whole model, ``open_clip.json`` and ``open_clip.pt``, and at last ``encoder/``.

    Args:
        out: The folder of the training, with its last checkpoint.
        description: open_clip's of the model.
        preprocessing: open_clip's: ``size``, ``mean``, ``std``, ``interpolation`` and ``resize_mode``.
    """
    state = read_weights(out / LATEST)
    (out / f".{DESCRIPTION}.unfinished").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (out / f".{DESCRIPTION}.unfinished").replace(out / DESCRIPTION)
    torch.save(state, out / f".{WEIGHTS}.unfinished")
    (out / f".{WEIGHTS}.unfinished").replace(out / WEIGHTS)
    encoder = CLIPVisionModel(huggingface_vision_config(description))
    visual = {key: value for key, value in state.items() if key.startswith("visual.") and key != "visual.proj"}
    load_strictly(encoder, open_clip_to_huggingface(visual), source=out / LATEST)
    unfinished = out / f".{ENCODER}.unfinished"
    encoder.save_pretrained(unfinished)
    image_processor(preprocessing).save_pretrained(unfinished)
    shutil.rmtree(out / ENCODER, ignore_errors=True)
    unfinished.rename(out / ENCODER)


def image_processor(preprocessing: Mapping[str, Any]) -> CLIPImageProcessor:
    """Gives open_clip's preprocessing as transformers knows it."""
    size = preprocessing["size"]
    side = size if isinstance(size, int) else size[0]
    return make_image_processor(
        side,
        squash=preprocessing["resize_mode"] == "squash",
        resample=_RESAMPLE[preprocessing["interpolation"]],
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
    )
