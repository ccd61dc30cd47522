"""Random language models of each family that a training is tested with, so small that a step takes milliseconds."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.tiny import training as tiny

FAMILIES = ("llama", "qwen3", "gemma3_text", "gemma3", "smollm3")
NEEDS_NEWER = FAMILIES[1:]
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"num_key_value_heads": 2, "head_dim": 16}
# Of Llama 3.1, for a context that a test exceeds.
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 16}
_LAYERS = ["sliding_attention", "full_attention"]
_IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}


def build_llm(family: str, num_tokens: int) -> PreTrainedModel:
    """A model of a family; "gemma3" is one that sees images by itself, as MedGemma does."""
    torch.manual_seed(0)
    sizes = {**_SIZES, **_IDS, "vocab_size": num_tokens}
    if family == "gemma3":
        text = transformers.Gemma3TextConfig(**sizes, sliding_window=8, layer_types=_LAYERS, rope_theta=2e5)
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config: Any = transformers.Gemma3Config(
            text_config=text.to_dict(),
            vision_config={**vision, "image_size": 32, "patch_size": 16},
            mm_tokens_per_image=4,
        )
        return transformers.Gemma3ForConditionalGeneration(config)
    if family == "gemma3_text":
        config = transformers.Gemma3TextConfig(**sizes, sliding_window=8, layer_types=_LAYERS, rope_theta=2e5)
        return transformers.Gemma3ForCausalLM(config)
    if family == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    if family == "smollm3":
        del sizes["head_dim"]
        return transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**sizes, no_rope_layer_interval=2))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_theta=5e5, rope_scaling=_LLAMA3))


def save_parts(folder: Path, family: str) -> dict[str, Path]:
    """Writes the parts of a training with a language model of a family."""
    parts = tiny.save_parts(folder)
    build_llm(family, tiny.save_tokenizer(parts["llm"])).save_pretrained(parts["llm"])
    return parts


if __name__ == "__main__":
    import sys

    save_parts(Path(sys.argv[1]), sys.argv[2])
