"""What a training will build, told before anything is read or written for it."""

import argparse
import json
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.model.clip import huggingface_vision_config, read_description
from pallava.open_clip_weights import made_with_quick_gelu


def describe(model: str, pretrained: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """The description of the model with what the weights and the trainer's options change in it.

    Args:
        model: open_clip's name of it, or a JSON file.
        pretrained: Weights to start from, a tag or a file; empty for random ones.
        parsed: The trainer's options.

    Raises:
        PallavaError: It is no plain CLIP ViT, which the encoder must be, or there are no such weights.
    """
    described: dict[str, Any] = json.loads(json.dumps(read_description(model)))  # a copy, to its depth
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
    huggingface_vision_config(described)
    return described


def _check_weights(model: str, pretrained: str) -> None:
    import open_clip  # takes seconds

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise PallavaError(
            f"there are no weights {pretrained!r} to start {model} from: it is no file, and open_clip's tags are "
            f"{', '.join(tags) or 'none'}. Name one of them by --pretrained, or 'none' to start from random weights."
        )
