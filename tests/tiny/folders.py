"""Model folders of random weights, of every kind that can be saved."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    GenerationConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pallava.model import (
    PALLaVAForConditionalGeneration,
    PALLaVAProcessor,
    ScaleInvariantConnector,
    ScaleInvariantConnectorConfig,
    load_image_processor,
    load_plip,
)
from pallava.model.timm_encoder import TimmEncoder, TimmEncoderConfig
from pallava.model.versions import block_broken_bitsandbytes
from tests.tiny import training as tiny

KINDS = ("clip", "clip tied", "clip adapter", "dinov2", "dinov2 adapter", "siglip", "timm")
_WIDTH = 24
_SIZES = {"hidden_size": _WIDTH, "num_hidden_layers": 2, "image_size": tiny.TILE, "patch_size": 16}


def save_parts(folder: Path) -> dict[str, Path]:
    """A language model and an encoder; the former's file says to sample wildly, which must not make answers vary."""
    parts = tiny.save_parts(folder)
    GenerationConfig(do_sample=True, temperature=9.0, eos_token_id=3).save_pretrained(parts["llm"])
    return parts


def open_llm(parts: dict[str, Path], *, is_tied: bool = False, has_lora: bool = False) -> Any:
    llm = AutoModelForCausalLM.from_pretrained(parts["llm"], tie_word_embeddings=is_tied)
    if not has_lora:
        return llm
    block_broken_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    return get_peft_model(llm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def make_encoder(kind: str, parts: dict[str, Path]) -> Any:
    torch.manual_seed(3)
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(num_attention_heads=2, mlp_ratio=2, **_SIZES))
    if kind == "siglip":
        config = SiglipVisionConfig(num_attention_heads=2, intermediate_size=48, vision_use_head=False, **_SIZES)
        return SiglipVisionModel(config)
    if kind == "timm":
        args = {"img_size": tiny.TILE, "embed_dim": _WIDTH, "depth": 2, "num_heads": 2, "init_values": 0.1}
        return TimmEncoder(TimmEncoderConfig("vit_tiny_patch16_224", args, **_SIZES))
    return load_plip(parts["plip"])


def build(parts: dict[str, Path], llm: Any, kind: str = "clip") -> PALLaVAForConditionalGeneration:
    encoder = make_encoder(kind, parts).eval()
    torch.manual_seed(1)
    sizes = {"visual_hidden_size": _WIDTH, "llm_hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    connector = ScaleInvariantConnector(ScaleInvariantConnectorConfig(intermediate_size=48, **sizes))
    model = PALLaVAForConditionalGeneration.from_parts(llm, encoder, connector).eval()
    model.use_end_tokens(make_processor(parts).end_token_ids)
    return model


def make_processor(parts: dict[str, Path]) -> PALLaVAProcessor:
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    return PALLaVAProcessor(load_image_processor(parts["plip"]), tokenizer, "qwen_chat")


def answers(model: Any, processor: Any, inputs: Any, **options: Any) -> list[str]:
    """What the model says behind its prompts."""
    ids = model.generate(**inputs, **options)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])


def save(parts: dict[str, Path], model: PALLaVAForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_processor(parts).save_pretrained(folder)
    return folder


def save_kinds(work: Path) -> dict[str, Path]:
    """Writes a folder of each kind."""
    parts, saved = save_parts(work / "parts"), {}
    for kind in KINDS:
        llm = open_llm(parts, is_tied="tied" in kind, has_lora="adapter" in kind)
        saved[kind] = save(parts, build(parts, llm, kind.split()[0]), work / kind.replace(" ", "_"))
    return saved


if __name__ == "__main__":
    save_kinds(Path(sys.argv[1]))
