"""One process of the training: open_clip's own trainer with our hooks, and the export after it.

Started by `pallava.pretraining.run`, through torchrun for several processes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError, without_worker
from pallava.io.processes import end_with_parent
from pallava.pretraining.model import describe, export
from pallava.transforms import PathologyAugmentation

_USER_ERROR = 2


def main(words: Sequence[str]) -> int:
    """Train and export by ``OUT [--description FILE] [--augment] --`` and the trainer's arguments; return the code."""
    end_with_parent()
    split = list(words).index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--description", type=Path)
    parser.add_argument("--augment", action="store_true")
    options = parser.parse_args(words[:split])
    try:
        return train(options.out, words[split + 1 :], options.description, augment=options.augment)
    except PallavaError as error:
        sys.stderr.write(f"error: {without_worker(str(error))}\n")
        return _USER_ERROR


def train(out: Path, arguments: Sequence[str], description: Path | None, *, augment: bool) -> int:
    """Run open_clip's trainer in this process and return its exit code; the first process exports.

    `description` is a JSON file of a model that open_clip does not know; the others are as in `Pretraining`.

    Raises:
        PallavaError: The model is not a CLIP ViT, the weights to start from are unknown, or a picture cannot be read.
    """
    import open_clip
    import torch
    from open_clip_train import main as trainer
    from open_clip_train.params import parse_args

    from pallava.pretraining import hooks

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The last of an option given twice counts: these are defaults.
    words = ["--device", device, "--precision", "amp" if device == "cuda" else "fp32", *arguments]
    parsed = parse_args(words)
    described = describe(str(description or parsed.model), parsed.pretrained, parsed)
    if described.get("quick_gelu"):
        words.append("--force-quick-gelu")
    if description is not None:
        open_clip.add_model_config(description)
    built: list[Any] = []
    hooks.install(
        augmentation=PathologyAugmentation() if augment else None,
        on_cpu=parsed.device == "cpu",
        on_model=lambda model: built.append(open_clip.get_model_preprocess_cfg(model)),
    )
    code = trainer.main(words) or 0
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if code == 0 and is_first:
        export(out, described, built[0])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
