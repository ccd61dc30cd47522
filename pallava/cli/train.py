"""The commands of training: ``train``, ``pretrain``, ``config list`` and ``config copy``."""

import argparse
import os
import sys
from pathlib import Path

from pallava.errors import PallavaError

_PASSED_ON = ("work_dir", "deepspeed", "resume", "seed", "launcher")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xtuner train`."""
    parser.add_argument("config", metavar="CONFIG", help="config file, or the name of a config")
    parser.add_argument("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<config>)")
    parser.add_argument("--deepspeed", help="settings of DeepSpeed: deepspeed_zero2, or a JSON file")
    parser.add_argument("--resume", help="checkpoint to resume from")
    parser.add_argument("--seed", type=int, help="seed of all random numbers")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="settings to override by their full keys, dots included"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], help="launcher of the processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def run_train(options: argparse.Namespace) -> int:
    """Train by a config, with the arguments and the launch variables of `xtuner train`.

    Example:
      NPROC_PER_NODE=8 pallava train pallava_domain_alignment --deepspeed deepspeed_zero2 --seed 1024

    CONFIG is a file, the name of one of our configs (`pallava config list`) or of one of xtuner's. The launch variables
    are NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT. --cfg-options takes keys that the trainer reads, such as
    optim_wrapper.optimizer.lr=1e-5; any that would change nothing are refused, but under xtuner's own configs they are
    ignored. The exit code is the trainer's own.
    """
    from pallava.config_files import check_syntax, find_config, train_script
    from pallava.io.launch import read_launch

    config = find_config(options.config)
    check_syntax(config)
    launch = read_launch(os.environ, options.launcher)
    launcher = ["--launcher", "pytorch"] if launch.processes > 1 else []
    command = [*launch.command, str(train_script()), str(config), *_pass_on(options), *launcher]
    sys.stdout.flush()
    sys.stderr.flush()
    # This process becomes the trainer: signals reach it, and its exit code is ours.
    os.execve(command[0], command, launch.environment)


def _pass_on(options: argparse.Namespace) -> list[str]:
    given = {name: getattr(options, name) for name in _PASSED_ON}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    words = [word for pair in pairs for word in pair]
    if options.local_rank is not None:
        words += ["--local_rank", str(options.local_rank)]
    return words + (["--cfg-options", *options.cfg_options] if options.cfg_options else [])


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that come before the ``--``."""
    parser.add_argument("pairs", type=Path, help="JSON list or JSONL of {image, caption}")
    parser.add_argument("out", type=Path, help="output folder; an unfinished training in it is resumed")
    parser.add_argument("--image-folder", type=Path, required=True, help="folder that the image names are relative to")
    parser.add_argument(
        "--model-name",
        default="",
        help="CLIP ViT to train: open_clip's name, or a JSON description (default: ViT-B-16-quickgelu)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="TAG|FILE",
        help="weights to start from, or `none` (default: openai's for the default model, none for another)",
    )
    parser.add_argument("--augment", action="store_true", help="random turns, flips and stains of each picture")
    parser.add_argument(
        "--shards", type=int, default=0, metavar="N", help="number of WebDataset shards; 0 reads files (default: 0)"
    )


def run_pretrain(options: argparse.Namespace) -> int:
    """Train the encoder, PLIP, by contrast on pairs of image and caption, with open_clip's own trainer.

    Example:
      pallava pretrain captions.json plip --image-folder images --augment -- --epochs 10 --batch-size 256 --lr 1e-5

    PAIRS is a JSON list or JSONL of {"image", "caption"}. OUT gets encoder/, which every config and command of pallava
    opens as a visual encoder, and the whole model with its text tower as open_clip.json and open_clip.pt. Each picture
    is decoded once before the training; broken ones are left out and counted. The same command resumes an interrupted
    training after its last finished epoch.

    What follows `--` goes to open_clip_train as it is: --epochs, --batch-size (of a process), --lr, --precision,
    --siglip, --workers, --grad-checkpointing and whatever else `python -m open_clip_train.main --help` lists. Several
    processes and nodes are started by NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `pallava train` does.
    """
    from pallava.io.launch import read_launch
    from pallava.pretraining.run import DEFAULT_MODEL, DEFAULT_WEIGHTS, Pretraining, TrainerFailed, pretrain

    default_weights = "" if options.model_name else DEFAULT_WEIGHTS
    weights = default_weights if options.pretrained is None else options.pretrained
    settings = Pretraining(
        pairs=options.pairs,
        image_folder=options.image_folder,
        out=options.out,
        model=options.model_name or DEFAULT_MODEL,
        pretrained="" if weights == "none" else weights,
        shards=options.shards,
        augment=options.augment,
        options=tuple(options.passed_on),
    )
    try:
        encoder = pretrain(settings, read_launch(os.environ), sys.stderr.write)
    except TrainerFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.code
    print(encoder)
    return 0


def add_config_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run_config_list(options: argparse.Namespace) -> int:
    """List the names of our configs, which `pallava train` and `pallava config copy` take.

    Example:
      pallava config copy pallava_domain_alignment
    """
    from pallava.config_files import config_names

    print("\n".join(config_names()))
    return 0


def add_config_copy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config's name and the copy's."""
    parser.add_argument("name", metavar="NAME", help="name from `pallava config list`")
    parser.add_argument("destination", metavar="DEST", nargs="?", default=".", help="file or folder (default: .)")
    parser.add_argument("--overwrite", action="store_true", help="replacement of an existing file")


def run_config_copy(options: argparse.Namespace) -> int:
    """Copy a config to change it.

    Example:
      pallava config copy pallava_domain_alignment my_experiment.py
    """
    from pallava.config_files import find_config
    from pallava.io.files import write_bytes

    source, target = find_config(options.name), Path(options.destination)
    if "read_base" in source.read_text(encoding="utf-8"):
        raise PallavaError(
            f"'{source.name}' builds on another config, which a copy would lose; copy the one that its read_base "
            "names, or change it by --cfg-options"
        )
    if target.is_dir() or not target.suffix:
        target = target / source.name
    if target.exists() and not options.overwrite:
        raise PallavaError(f"'{target}' exists; choose another name, or add --overwrite to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, source.read_bytes())
    print(target)
    return 0
