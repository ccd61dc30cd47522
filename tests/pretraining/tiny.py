"""Small pairs, a small model, and the command on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
WHOLE_PICTURE = ("--aug-cfg", "scale=(1.0,1.0)")


def save_pairs(folder: Path, count: int = 8, side: int = 32) -> tuple[Path, Path]:
    """Writes `count` pictures and their captions; gives the pairs and the model's description."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(folder / "images" / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"slide {number} of a tumour, stained with dye {number % 3}"})
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    return folder / "pairs.json", folder / "tiny.json"


def command(folder: Path, out: str, *options: str, before: tuple[str, ...] = ()) -> list[str]:
    """The command that trains on the pairs in a folder, without readers of their own."""
    words = ["pretrain", folder / "pairs.json", folder / out, "--image-folder", folder / "images"]
    words += ["--model", folder / "tiny.json", *before, "--", "--workers", "0", *options]
    return [sys.executable, "-m", "pallava", *map(str, words)]


def environment(processes: int = 1) -> dict[str, str]:
    return {**os.environ, "NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}


def run(words: list[str], processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment(processes))


def steps_taken(out: Path) -> int:
    """Of the optimizer, as the last checkpoint counts them."""
    checkpoint = torch.load(out / "run" / "checkpoints" / "epoch_latest.pt", weights_only=True)
    return int(next(iter(checkpoint["optimizer"]["state"].values()))["step"])
