"""Turns a training checkpoint, or published weights, into one folder that opens with transformers and pallava alone.

Of a run of yours, config, language model and encoder are those that its work directory names, unless given. Published
weights need no config: CHECKPOINT is a .pth file, a DeepSpeed folder, a folder with projector/ and llm_adapter/, or a
.tar.gz of one of them; name the base language model and the encoder (the folder plip, or its archive). What is found in
them is printed, and every key must be known.

Example:
  pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava
  pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava --merge --dtype bfloat16
  pallava convert instruction_tuning_weight.pth.tar.gz pa-llava --llm Meta-Llama-3-8B-Instruct --visual-encoder plip
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "checkpoint", help="a .pth file, a DeepSpeed folder, a file inside one, a work directory, or an archive"
    )
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--config", help="the run's config, if it does not lie beside the checkpoint; it is run")
    parser.add_argument("--llm", help="the base language model, if not where the config says")
    parser.add_argument("--visual-encoder", help="the encoder, if not where the config says")
    parser.add_argument(
        "--merge", action="store_true", help="merge LoRA into the language model (default: keep it apart)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: as they come)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder at OUT")
    untold = parser.add_argument_group("what weights do not tell, where there is no config")
    untold.add_argument("--lora-alpha", type=float, help="LoRA's alpha (default: twice the rank, as published)")
    untold.add_argument(
        "--connector-heads", type=int, help="attention heads of the connector (default: 12, as published)"
    )
    untold.add_argument("--prompt-template", help="the template of the training (default: llama3_chat, as published)")


def run(options: argparse.Namespace) -> int:
    """Converts."""
    import torch

    from pallava.model.convert import convert

    out = convert(
        options.checkpoint,
        options.out,
        config=options.config,
        llm=options.llm,
        visual_encoder=options.visual_encoder,
        merge=options.merge,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        overwrite=options.overwrite,
        lora_alpha=options.lora_alpha,
        connector_heads=options.connector_heads,
        prompt_template=options.prompt_template,
        tell=print,
    )
    print(f"wrote {out}")
    return 0
