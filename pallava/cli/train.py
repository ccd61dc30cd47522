"""Train by a config, with the arguments and the launch variables of `xtuner train`.

Example:
  NPROC_PER_NODE=8 pallava train pallava_domain_alignment --deepspeed deepspeed_zero2 --seed 1024

CONFIG is a file, the name of one of our configs (`pallava config list`) or of one of xtuner's. The launch variables are
NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT. The exit code is the trainer's own.
"""

import argparse
import os
import sys

HELP = "train by a config, as `xtuner train` does, with the trainer's true exit code"

_PASSED_ON = ("work_dir", "deepspeed", "resume", "seed", "launcher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `xtuner train`."""
    parser.add_argument("config", metavar="CONFIG", help="a file, or a config's name")
    parser.add_argument("--work-dir", help="where logs and checkpoints go; default: ./work_dirs/<config>")
    parser.add_argument("--deepspeed", help="DeepSpeed's settings: deepspeed_zero2, or a JSON file")
    parser.add_argument("--resume", help="the checkpoint to go on from")
    parser.add_argument("--seed", type=int, help="seed of all random numbers")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="settings of the config to override")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], help="who starts the processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Becomes the trainer: signals reach it, and its exit code is ours.

    Raises:
        PallavaError: No such config, settings that would change nothing, or launch variables that cannot work.
    """
    from pallava.config_files import check_overrides, find_config, train_script
    from pallava.io.launch import build_command, build_environment

    config = find_config(args.config)
    check_overrides(config, args.cfg_options or [])
    arguments = [str(config), *_pass_on(args)]
    command = build_command(train_script(), arguments, os.environ)
    environment = build_environment(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def _pass_on(args: argparse.Namespace) -> list[str]:
    given = {name: getattr(args, name) for name in _PASSED_ON}
    words = [word for name, value in given.items() if value is not None for word in (_flag(name), str(value))]
    if args.local_rank is not None:
        words += ["--local_rank", str(args.local_rank)]
    return words + (["--cfg-options", *args.cfg_options] if args.cfg_options else [])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
