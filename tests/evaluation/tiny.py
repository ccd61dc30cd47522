"""A CLIP of a few thousand weights, and pictures of one colour for classes that it can be taught to name."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DESCRIPTION = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_open_clip(folder: Path, seed: int = 0) -> Path:
    """A folder as `pallava pretrain` writes one."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip.json").write_text(json.dumps(DESCRIPTION))
    torch.manual_seed(seed)
    model = open_clip.CLIP(**DESCRIPTION)
    torch.save(model.state_dict(), folder / "open_clip.pt")
    return folder


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """A folder of classes with pictures of noise."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = rng.integers(0, 256, size=(20, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{number}.png")
    return root
