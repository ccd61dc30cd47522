"""Trains the encoder, PLIP, by contrast on pairs of image and caption, with open_clip's own trainer.

PAIRS is a JSON list or JSONL of {"image", "caption"}. OUT gets encoder/, which every config and command of pallava
opens as a visual encoder, and the whole model with its text tower as open_clip.json and open_clip.pt. Each picture is
decoded once before the training, and what is broken is left out and counted. The same command goes on after the last
finished epoch of a training that was interrupted.

What follows `--` goes to open_clip_train as it is: --epochs, --batch-size (of a process), --lr, --precision, --siglip,
--workers, --grad-checkpointing and whatever else `python -m open_clip_train.main --help` lists. Several processes and
nodes are started by NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `pallava train` does.

Example:
  pallava pretrain captions.json plip --image-folder images --augment -- --epochs 10 --batch-size 256 --lr 1e-5
"""

import argparse
import os
import sys
from pathlib import Path

PASSES_ON = True
"""What follows `--` is for another program."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("pairs", type=Path, help="a JSON list or JSONL of {image, caption}")
    parser.add_argument("out", type=Path, help="folder to write, or of a training to go on with")
    parser.add_argument("--image-folder", type=Path, required=True, help="what the image names are relative to")
    parser.add_argument(
        "--model", default="", help="a CLIP ViT: open_clip's name, or a JSON description (default: ViT-B-16-quickgelu)"
    )
    parser.add_argument(
        "--pretrained",
        metavar="TAG|FILE",
        help="weights to start from, or `none` (default: openai's for the default model, none for another)",
    )
    parser.add_argument("--augment", action="store_true", help="turn, flip and stain each picture anew")
    parser.add_argument(
        "--shards", type=int, default=0, metavar="N", help="train from N WebDataset shards (default: from the files)"
    )


def run(options: argparse.Namespace) -> int:
    """Trains."""
    from pallava.io.launch import build_environment, node_rank, num_processes, python_command
    from pallava.pretraining.run import DEFAULT_MODEL, DEFAULT_WEIGHTS, Launch, Pretraining, TrainerFailed, pretrain

    weights = options.pretrained if options.pretrained is not None else "" if options.model else DEFAULT_WEIGHTS
    settings = Pretraining(
        pairs=options.pairs,
        image_folder=options.image_folder,
        out=options.out,
        model=options.model or DEFAULT_MODEL,
        pretrained="" if weights == "none" else weights,
        shards=options.shards,
        augment=options.augment,
        options=tuple(options.passed_on),
    )
    launch = Launch(
        tuple(python_command(os.environ)),
        build_environment(os.environ),
        num_processes(os.environ),
        node_rank(os.environ),
    )
    try:
        encoder = pretrain(settings, launch, sys.stderr.write)
    except TrainerFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.code
    print(encoder)
    return 0
