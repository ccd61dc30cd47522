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


def write_hugging_face(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face CLIP folder with a tokenizer that spells every letter, and a preprocessing of its own."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,-&"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": len(words) - 1}
    torch.manual_seed(seed)
    vision = {**tower, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    CLIPImageProcessor(**size, image_mean=[0.7, 0.6, 0.7], image_std=[0.25, 0.25, 0.25]).save_pretrained(folder)
    return folder
