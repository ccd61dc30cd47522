"""Turns a training checkpoint into one folder that opens with transformers and pallava alone.

The config, the language model and the encoder are those that the run's work directory names, unless given.

Example:
  pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava
  pallava convert work_dirs/pallava_instruction_tuning/iter_17772.pth pa-llava --merge --dtype bfloat16
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("checkpoint", help="a .pth file, a DeepSpeed folder, a file inside one, or a work directory")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--config", help="the run's config, if it does not lie beside the checkpoint")
    parser.add_argument("--llm", help="the base language model, if not where the config says")
    parser.add_argument("--visual-encoder", help="the encoder, if not where the config says")
    parser.add_argument(
        "--merge", action="store_true", help="merge LoRA into the language model (default: keep it apart)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: as they come)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> int:
    """Converts."""
    import torch

    from pallava.training.convert import convert

    out = convert(
        options.checkpoint,
        options.out,
        config=options.config,
        llm=options.llm,
        visual_encoder=options.visual_encoder,
        merge=options.merge,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        overwrite=options.overwrite,
    )
    print(f"wrote {out}")
    return 0
