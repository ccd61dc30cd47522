"""Everything that a training needs, so small that a step takes milliseconds."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TILE = 32
WORDS = [
    "what",
    "is",
    "shown",
    "here",
    "?",
    "describe",
    "the",
    "image",
    ".",
    "stain",
    "nuclei",
    "gland",
    "necrosis",
    "present",
    "absent",
    "yes",
    "no",
    "few",
    "many",
]


def save_tokenizer(folder: Path, extra: Sequence[str] = ()) -> int:
    """Writes the tokenizer of the tiny language models, with further tokens at its end; returns their number."""
    specials = ["<unk>", "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS, "user", "assistant", *extra])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    ).save_pretrained(folder)
    return len(vocabulary)


def save_parts(folder: Path) -> dict[str, Path]:
    """Writes a random language model with its tokenizer and a random encoder."""
    torch.manual_seed(0)
    num_tokens = save_tokenizer(folder / "llm")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=num_tokens, num_key_value_heads=2, **sizes)).save_pretrained(folder / "llm")
    vision = CLIPVisionConfig(image_size=TILE, patch_size=16, **{**sizes, "hidden_size": 24})
    CLIPVisionModel(vision).save_pretrained(folder / "plip")
    CLIPImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}).save_pretrained(
        folder / "plip"
    )
    return {"llm": folder / "llm", "plip": folder / "plip"}


def save_data(folder: Path, num_rows: int = 24, num_without_image: int = 0) -> dict[str, Path]:
    """Writes pictures and one question on each; the last rows have no picture."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as rows:
        for index in range(num_rows):
            row = {"id": str(index), "image": f"{index}.png"}
            has_image = index < num_rows - num_without_image
            if has_image:
                pixels = rng.integers(0, 255, (48 + index, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{index}.png")
            else:
                del row["image"]
            question = ("<image>\n" if has_image else "") + "what is shown here ?"
            answer = " ".join(rng.choice(WORDS, 6))
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            rows.write(json.dumps({**row, "conversations": turns}) + "\n")
    return {"rows": folder / "rows.jsonl", "images": images, "sample": images / "0.png", "cache": folder / "cache"}


def write_config(name: str, parts: dict[str, Path], data: dict[str, Path], path: Path, num_steps: int = 8) -> Path:
    """Writes a config of ours with the tiny parts in it, which logs raw losses and has `tests.tiny.probe` as a hook."""
    from mmengine.config import Config

    from pallava.config_files import find_config

    config = Config.fromfile(find_config(name))
    dataset, hooks = config.train_dataloader.dataset, config.default_hooks
    chat = hooks.sample_chat
    for part in (config.model.llm, dataset.tokenizer, hooks.dataset_info.tokenizer, chat.tokenizer):
        part.pretrained_model_name_or_path = str(parts["llm"])
    for part in (config.model.visual_encoder, dataset.image_processor, chat.image_processor):
        part.source = str(parts["plip"])
    dataset.update(data_path=str(data["rows"]), image_folder=str(data["images"]))
    dataset.update(prompt_template="qwen_chat", context_length=64, num_proc=1, cache_dir=str(data["cache"]))
    chat.update(images=[str(data["sample"])], prompt_template="qwen_chat", max_new_tokens=4)
    config.model.connector.update(num_hidden_layers=2, num_attention_heads=2)
    config.model.llm_lora.r = 4
    config.model.pretrained_pth = None
    config.model.activation_checkpointing = "all"
    config.train_dataloader.update(batch_size=1, num_workers=0)
    config.train_dataloader.sampler = {"type": "DefaultSampler", "shuffle": True}  # mixes rows with and without image
    config.optim_wrapper.accumulative_counts = 1
    config.train_cfg = {"type": "pallava.training.loop.TrainLoop", "max_iters": num_steps}
    config.param_scheduler = [{"type": "CosineAnnealingLR", "by_epoch": False, "begin": 0, "end": num_steps}]
    hooks.logger.interval = 1
    hooks.checkpoint.update(interval=num_steps // 2, max_keep_ckpts=5)
    config.custom_hooks.append({"type": "tests.tiny.probe.Probe"})
    config.custom_imports.imports.append("tests.tiny.probe")
    config.dump(path)
    return path
