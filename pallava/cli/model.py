"""The commands on models: `convert`, `encoder convert` and `card`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pallava.errors import PallavaError, check_at_least

Form = Literal["open_clip", "huggingface", "published"]  # as in model.clip, which takes seconds to import


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of `convert`."""
    add = parser.add_argument
    add("checkpoint", help=".pth file, DeepSpeed folder, file inside one, work directory of a run, or archive")
    add("out", help="model folder to write")
    add("--config", help="training config, JSON, or Python to execute (default: the JSON beside the checkpoint)")
    add("--llm", help="base language model (default: the config's)")
    add("--visual-encoder", help="visual encoder (default: the config's)")
    add("--merge", action="store_true", help="merge LoRA into the language model (default: keep it as an adapter)")
    types = ["float32", "bfloat16", "float16"]
    add("--dtype", choices=types, help="type of the weights (default: as the parts have)")
    add("--overwrite", action="store_true", help="replace a model folder at OUT")
    add("--trust-remote-code", action="store_true", help="import a connector that does not come with pallava")
    add = parser.add_argument_group("settings that weights do not record (only without a config)").add_argument
    add("--lora-alpha", type=float, help="alpha of LoRA (default: twice the rank, as published)")
    add("--connector-heads", type=int, help="number of attention heads of the connector (default: 12, as published)")
    add("--prompt-template", help="prompt template of the training: a name, or `tokenizer` (default: llama3_chat)")


def run_convert(config: str | None, dtype: str | None, **values: Any) -> None:
    """Turn a training checkpoint or published weights into one folder that opens with transformers and pallava only."""
    import torch

    from pallava.model.convert import convert

    check_at_least(1, connector_heads=values["connector_heads"])
    if values["lora_alpha"] is not None and not values["lora_alpha"] > 0:
        raise PallavaError(f"--lora-alpha must be above 0, got {values['lora_alpha']:g}")
    values |= {"config": config, "dtype": getattr(torch, dtype) if dtype else None}
    if config is not None and Path(config).suffix == ".py" and Path(config).is_file():
        from pallava.training.hooks.config import load_config

        values |= {"config": load_config(config), "trust_remote_code": True}  # who names a program trusts it
    print(f"wrote {convert(**values, log=print)}")


def run_encoder_convert(
    source: Annotated[str, "folder or open_clip checkpoint"],
    out: Annotated[str, "folder to write; must not exist"],
    *,
    to: Annotated[Form, "form to write"],
    model_name: Annotated[str, "open_clip's name of a checkpoint's model, or a JSON file that describes it"] = "",
) -> None:
    """Turn a CLIP ViT into a folder of another form: open_clip's, Hugging Face's, or the published PLIP's."""
    from pallava.model.clip import convert_encoder

    print(f"wrote {convert_encoder(source, out, to, model_name)}")


def run_card(
    model: Annotated[str, "folder that `pallava convert` wrote"],
    scores: Annotated[Sequence[str], "results.json of `pallava evaluate` (repeatable)"] = (),
) -> None:
    """Write the model card of a model folder, or put scores into it."""
    from pallava.model.card import CARD, add_scores, write_model_card
    from pallava.model.weights import read_json

    card = Path(model) / CARD
    if not card.is_file():
        write_model_card(model)
    for path in map(Path, scores):
        if not path.is_file():
            raise PallavaError(f"no results at '{path}': `pallava evaluate` writes results.json into its folder")
        results = read_json(path)
        add_scores(model, results if isinstance(results, dict) else {})
    print(card)
