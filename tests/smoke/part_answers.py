"""Encoders and language models as one transformers writes them and another reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from pallava.model import load_encoder
from pallava.model.encoders import patch_tokens
from pallava.model.loading import open_llm
from tests.tiny.families import build_llm

_VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION |= {"image_size": 32, "patch_size": 16}
_NUM_TOKENS = 32


def write(folder: Path, names: Sequence[str]) -> None:
    """Writes parts of large random weights into folders of their names."""
    for name in names:
        torch.manual_seed(0)
        part: Any
        if name == "clip":
            part = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION))
        elif name == "siglip":
            part = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION))
        else:
            part = build_llm(name, _NUM_TOKENS)
        with torch.no_grad():  # with small ones, positions hardly matter
            for weight in part.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.25)
        part.save_pretrained(folder / name)


@torch.no_grad()
def read(folder: Path) -> dict[str, Tensor]:
    """What each part computes: patch tokens, or logits."""
    found = {}
    for each in sorted(folder.iterdir()):
        if each.name in ("clip", "siglip"):
            pixels = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
            found[each.name] = patch_tokens(load_encoder(each), pixels, -1)
        else:
            ids = torch.arange(60)[None] % _NUM_TOKENS
            found[each.name] = open_llm(each)(ids).logits
    return found
