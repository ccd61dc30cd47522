"""A whole PA-LLaVA of a few thousand random weights, whose answers vary, and questions for it."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, PreTrainedModel

from pallava.model import (
    PALLaVAForConditionalGeneration,
    PALLaVAProcessor,
    ScaleInvariantConnector,
    ScaleInvariantConnectorConfig,
    load_plip,
)
from tests.tiny.training import TILE, WORDS, save_parts


def write_model(folder: Path, seed: int = 0, connector: PreTrainedModel | None = None) -> Path:
    """A model folder as `pallava convert` writes one."""
    parts = save_parts(folder.with_name(f"{folder.name}_parts"))
    torch.manual_seed(seed)
    llm, encoder = AutoModelForCausalLM.from_pretrained(parts["llm"]), load_plip(parts["plip"])
    sizes = {"visual_hidden_size": 24, "llm_hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    connector = connector or ScaleInvariantConnector(ScaleInvariantConnectorConfig(**sizes))
    model = PALLaVAForConditionalGeneration.from_parts(llm, encoder, connector)
    with torch.no_grad():  # random weights of the usual size say the same word whatever they see
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    size = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
    processor = PALLaVAProcessor(CLIPImageProcessor(**size), tokenizer, "qwen_chat")
    model.use_end_tokens(processor.end_token_ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_questions(folder: Path, count: int, num_images: int = 5, seed: int = 0) -> Path:
    """A JSONL of questions of various lengths, three groups among them, on images of various shapes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        pixels = rng.integers(0, 256, size=(40 + 9 * number, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    rows = []
    for number in range(count):
        words = rng.choice(WORDS, rng.integers(2, 30))
        row = {"id": f"q{number}", "image": f"{number % num_images}.png", "question": " ".join(words) + " ?"}
        rows.append({**row, "answer": ("yes", "no", "few nuclei")[number % 3], "group": f"group {number % 3}"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"
