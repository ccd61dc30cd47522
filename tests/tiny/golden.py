"""The golden numbers as tests read them: parts, samples and what must come out."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pallava.model import PALLaVAForConditionalGeneration, ScaleInvariantConnector, load_plip

GOLDEN = Path(__file__).parents[1] / "golden"
NUM_SAMPLES = 3


def published_plip_folder(folder: Path) -> Path:
    """The encoder as it was published: config.json and a pickled file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "plip_config.json", folder / "config.json")
    shutil.copy(GOLDEN / "plip_vision.bin", folder / "plip_80w_196token.bin")
    return folder


def llm() -> LlamaForCausalLM:
    config = LlamaConfig(**json.loads((GOLDEN / "llm_config.json").read_text()))
    model = LlamaForCausalLM(config)
    model.load_state_dict(load_file(GOLDEN / "llm.safetensors"))
    return model.eval()


def connector(cross: bool = True) -> ScaleInvariantConnector:
    source = GOLDEN / f"connector_cross_{str(cross).lower()}.safetensors"
    return ScaleInvariantConnector.from_published(source, num_attention_heads=4)


def model(folder: Path, cross: bool = True) -> PALLaVAForConditionalGeneration:
    parts = llm(), load_plip(published_plip_folder(folder)), connector(cross)
    return PALLaVAForConditionalGeneration.from_parts(*parts).eval()


def samples() -> list[dict[str, Tensor]]:
    tiles, io = load_file(GOLDEN / "tiling_io.safetensors"), load_file(GOLDEN / "model_io.safetensors")
    names = ("input_ids", "labels", "visual_tokens", "logits", "loss")
    return [{"tiles": tiles[f"tiles_{i}"], **{name: io[f"{name}_{i}"] for name in names}} for i in range(NUM_SAMPLES)]


def batch(rows: list[dict[str, Tensor]], left: bool = False) -> dict[str, Tensor]:
    """Several samples, padded on one side."""
    length = max(len(row["input_ids"]) for row in rows)

    def pad(key: str, value: int) -> Tensor:
        padding = [torch.full((length - len(row["input_ids"]),), value) for row in rows]
        rows_of = [row.get(key, torch.ones_like(row["input_ids"])) for row in rows]
        return torch.stack([torch.cat([p, r] if left else [r, p]) for p, r in zip(padding, rows_of, strict=True)])

    return {
        "input_ids": pad("input_ids", 0),
        "attention_mask": pad("attention_mask", 0),
        "labels": pad("labels", -100),
        "pixel_values": torch.cat([row["tiles"] for row in rows]),
        "tiles_per_image": torch.tensor([len(row["tiles"]) for row in rows]),
    }
