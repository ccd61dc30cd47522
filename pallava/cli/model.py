"""The commands on models: `convert`, `encoder convert` and `card`."""

import argparse
from pathlib import Path

FORMS = ("open_clip", "huggingface", "published")  # as in model.clip, which takes seconds to import


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pallava convert`."""
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
    add("--prompt-template", help="prompt template of the training (default: llama3_chat)")


def run_convert(options: argparse.Namespace) -> int:
    """Turn a training checkpoint or published weights into one folder that opens with transformers and pallava alone.

    For a checkpoint of your own training, its work directory names config, language model and encoder. Published
    weights need no config: CHECKPOINT is a .pth file, a DeepSpeed folder, a folder with projector/ and llm_adapter/, or
    a .tar.gz of one of them; name the base language model and the encoder (the folder plip, or its archive). The
    command prints what it finds in them, and every key must be known.

    Example:
      pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava
      pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava --merge --dtype bfloat16
      pallava convert instruction_tuning_weight.pth.tar.gz pa-llava --llm Meta-Llama-3-8B-Instruct --visual-encoder plip
    """
    import torch

    from pallava.model.convert import convert

    config, trust = options.config, options.trust_remote_code
    if config is not None and Path(config).suffix == ".py" and Path(config).is_file():
        from pallava.training.hooks.config import load_config

        config, trust = load_config(config), True  # who names a program trusts it
    out = convert(
        options.checkpoint,
        options.out,
        config=config,
        llm=options.llm,
        visual_encoder=options.visual_encoder,
        merge=options.merge,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        overwrite=options.overwrite,
        lora_alpha=options.lora_alpha,
        connector_heads=options.connector_heads,
        prompt_template=options.prompt_template,
        trust_remote_code=trust,
        log=print,
    )
    print(f"wrote {out}")
    return 0


def add_encoder_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pallava encoder convert`."""
    parser.add_argument("source", help="folder or open_clip checkpoint")
    parser.add_argument("out", help="folder to write; must not exist")
    parser.add_argument("--to", required=True, choices=FORMS, help="form to write")
    name = "open_clip's name of a checkpoint's model, or a JSON file that describes it"
    parser.add_argument("--model-name", default="", help=name)


def run_encoder_convert(options: argparse.Namespace) -> int:
    """Turn a CLIP ViT into a folder of another form: open_clip's, Hugging Face's, or the published PLIP's.

    SOURCE is a Hugging Face folder, the published `plip` folder, the folder that `pallava pretrain` wrote, or an
    open_clip checkpoint (with --model-name). The published form holds the vision tower alone; a vision tower without
    its text tower becomes an open_clip state dict of the `visual.` keys.

    Example:
      pallava encoder convert plip plip-hf --to huggingface
      pallava encoder convert epoch_32.pt plip-published --to published --model-name ViT-B-16-quickgelu
    """
    from pallava.model.clip import convert_encoder

    print(f"wrote {convert_encoder(options.source, options.out, options.to, options.model_name)}")
    return 0


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pallava card`."""
    parser.add_argument("model", help="folder that `pallava convert` wrote")
    parser.add_argument("--scores", action="append", default=[], help="results.json of `pallava evaluate` (repeatable)")


def run_card(options: argparse.Namespace) -> int:
    """Write the model card of a model folder, or put scores into it.

    What was written into the card by hand stays: only the scores of the same task and data are replaced. A folder
    without a card gets one.

    Example:
      pallava card pa-llava
      pallava card pa-llava --scores evaluation/results.json
    """
    from pallava.errors import PallavaError
    from pallava.model.card import CARD, add_scores, write_model_card
    from pallava.model.weights import read_json

    card = Path(options.model) / CARD
    if not card.is_file():
        write_model_card(options.model)
    for path in map(Path, options.scores):
        if not path.is_file():
            raise PallavaError(f"no results at '{path}': `pallava evaluate` writes results.json into its folder")
        results = read_json(path)
        add_scores(options.model, results if isinstance(results, dict) else {})
    print(card)
    return 0
