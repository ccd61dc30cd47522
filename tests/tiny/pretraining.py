"""Small pairs, a small model, and the command on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pallava.evaluation.answers.items import Item, Questions
from pallava.evaluation.class_sets import ClassSet
from pallava.evaluation.encoders.embeddings import EmbeddingCache
from pallava.evaluation.encoders.load import load_encoder
from pallava.evaluation.encoders.zero_shot import evaluate

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


DYES = {"eosin": (220, 130, 170), "haematoxylin": (80, 60, 150), "silver": (60, 55, 50), "alcian blue": (90, 170, 200)}


def save_dyed_pairs(folder: Path, count: int, seed: int = 0) -> list[tuple[Path, int]]:
    """Writes noisy pictures in the colour that their caption names; gives path and number of the dye of each."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, labels = [], []
    for number in range(count):
        dye = number % len(DYES)
        pixels = np.array(list(DYES.values())[dye]) + rng.normal(0, 30, (40, 40, 3)) + rng.normal(0, 8, 3)
        path = folder / "images" / f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        rows.append({"image": path.name, "caption": f"field {number % 7} stained with {list(DYES)[dye]}"})
        labels.append((path, dye))
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    return labels


def dye_accuracy(out: Path, labelled: list[tuple[Path, int]], cache: Path) -> float:
    """Zero-shot accuracy of a trained folder."""
    words = ClassSet("dyes", tuple((dye, (dye,)) for dye in DYES), ("field 1 stained with {}",))
    data = Questions([Item("", str(path), "", list(DYES)[dye], "class") for path, dye in labelled], class_set=words)
    encoder = load_encoder(str(out))
    result = evaluate(encoder, data, EmbeddingCache(cache, encoder), num_resamples=10)
    return result["metrics"]["accuracy"]["value"]


def command(folder: Path, out: str, *options: str, before: tuple[str, ...] = ()) -> list[str]:
    """The command that trains on the pairs in a folder, without readers of their own."""
    words = ["pretrain", folder / "pairs.json", folder / out, "--image-folder", folder / "images"]
    words += ["--model-name", folder / "tiny.json", *before, "--", "--workers", "0", *options]
    return [sys.executable, "-m", "pallava", *map(str, words)]


def environment(processes: int = 1) -> dict[str, str]:
    return {**os.environ, "NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}


def run(words: list[str], processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment(processes))


def steps_taken(out: Path) -> int:
    """Of the optimizer, as the last checkpoint counts them."""
    checkpoint = torch.load(out / "run" / "checkpoints" / "epoch_latest.pt", weights_only=True)
    return int(next(iter(checkpoint["optimizer"]["state"].values()))["step"])
