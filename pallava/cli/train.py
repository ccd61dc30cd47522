"""The commands of training: `demo`, `train`, `doctor` and `pretrain`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from json import dumps
from math import inf
from pathlib import Path
from typing import Annotated, Any

from pallava.config_files import DEEPSPEED_SETTINGS, check_can_train, check_syntax, find_config, train_script
from pallava.errors import PallavaError, check_at_least
from pallava.io.launch import read_launch

_DEEPSPEED = f"settings of DeepSpeed: {DEEPSPEED_SETTINGS}"


def run_demo(
    scale: Annotated[
        float, "fraction of the demo's size, above 0 to 1; a small one only shows that all steps run"
    ] = 1.0,
    seed: Annotated[int, "seed of the images, the questions and the trainings (default: 7)"] = 7,
) -> None:
    """Train a small PA-LLaVA on this computer, and look at what it learnt."""
    from pallava.demo import DemoSettings

    check_can_train()
    check_at_least(0, seed=seed)
    settings = DemoSettings(seed=seed).scaled(scale)
    from pallava.demo.pipeline import Demo  # takes seconds to import; a wrong argument fails at once

    report = Demo(Path("demo"), settings, _Lines()).run()
    fine = report["fine_detail_accuracy"]
    print(
        f"\nOf {report['num_questions']} held-out questions on synthetic images:\n"
        f"  closed  {report['closed_accuracy']:.1%} right ({report['closed_accuracy_shuffled']:.1%} with shuffled "
        f"images, {report['closed_accuracy_majority']:.1%} by always giving the more frequent answer)\n"
        f"  open    {report['open_exact_match']:.1%} exactly right\n"
        f"  fine detail  {fine['with_tiles']:.1%} with tiles, {fine['tiles_replaced_by_overview']:.1%} without\n\n"
        "The page: demo/index.html   The numbers: demo/report.json   Ask it something:\n"
        '  pallava chat demo/model --image demo/data/images/test-00000.png --question "Is necrosis present?"'
    )


class _Lines:
    """Printer of lines; those that begin with a carriage return replace each other on a terminal."""

    def __init__(self) -> None:
        self._is_open, self._count = False, 0

    def __call__(self, text: str) -> None:
        if not text.startswith("\r"):
            print("\n" * self._is_open + text, flush=True)
            self._is_open = False
        elif sys.stdout.isatty():
            print(f"\r\x1b[K{text[1:]}", end="", flush=True)
            self._is_open = True
        else:
            self._count += 1
            if self._count % 50 == 0:  # a log file has one in so many
                print(text[1:], flush=True)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `xtuner train`."""
    add = parser.add_argument
    add("config", metavar="CONFIG", help="config file, or the name of a config")
    add("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<config>)")
    add("--deepspeed", help=_DEEPSPEED)
    text = "checkpoint to resume from; auto: the newest whole one of the work directory, or else the start"
    add("--resume", help=text)
    add("--seed", type=int, help="seed of all random numbers")
    text = "settings to override by their full keys, dots included"
    add("--cfg-options", nargs="+", metavar="KEY=VALUE", default=[], help=text)
    add("--launcher", choices=["none", "pytorch", "slurm", "mpi"], help="launcher of the processes")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def run_train(config: str, cfg_options: list[str], local_rank: int | None, **options: Any) -> None:
    """Train by a config, with the arguments and the launch variables of `xtuner train`."""
    path = find_config(config)
    check_syntax(path)
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items()} | {"--local_rank": local_rank}
    words = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    words += ["--cfg-options", *cfg_options] if cfg_options else []
    launch = read_launch(os.environ, options["launcher"])
    words += ["--launcher", "pytorch"] if launch.processes > 1 else []
    command = [*launch.command, str(train_script()), str(path), *words]
    sys.stdout.flush()
    sys.stderr.flush()
    # This process becomes the trainer: signals reach it, and its exit code is ours.
    os.execve(command[0], command, launch.environment)


def run_doctor(
    config: Annotated[str, "config file, or the name of a config", {"metavar": "CONFIG"}],
    *,
    deepspeed: Annotated[str | None, _DEEPSPEED] = None,
    nproc: Annotated[int, "number of processes on all nodes, a card each"] = 1,
    nodes: Annotated[int | None, "number of nodes (default: one for every 8 processes)"] = None,
    work_dir: Annotated[str | None, "folder of logs and checkpoints (default: ./work_dirs/<config>)"] = None,
    cfg_options: Annotated[
        list[str] | None, "settings to override by their full keys", {"metavar": "KEY=VALUE"}
    ] = None,
    card_gb: Annotated[float | None, "memory of a card in GB (default: that of the card here, or else 80)"] = None,
    peak_tflops: Annotated[float, "peak of a card in TFLOPS (default: 989, an H100 in bf16)"] = 989.0,
    share: Annotated[float, "share of the peak that the training reaches, above 0 to 1"] = 0.4,
    json: Annotated[bool, "the report as JSON"] = False,
) -> int:
    """Examine a training before a cluster is booked: what would fail, the memory of a card, the hours it takes."""
    check_at_least(1, nproc=nproc, nodes=nodes)
    for name, value, most in (("card-gb", card_gb, inf), ("peak-tflops", peak_tflops, inf), ("share", share, 1.0)):
        if value is not None and not (0 < value <= most and value < inf):
            raise PallavaError(f"--{name} must be above 0{' and at most 1' * (most == 1)}, got {value:g}")
    find_config(config)
    check_can_train()
    print(f"examining '{config}', up to a minute ...", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # logs and progress of the libraries
        from pallava.training.doctor import DoctorSettings, examine

        report = examine(
            DoctorSettings(
                config,
                deepspeed=deepspeed,
                num_processes=nproc,
                num_nodes=nodes,
                work_dir=work_dir,
                cfg_options=tuple(cfg_options or ()),
                card_gb=card_gb,
                peak_tflops=peak_tflops,
                share=share,
            )
        )
    print(dumps(report.to_dict(), indent=2) if json else _doctor_text(report))
    return report.exit_code


def _doctor_text(report: Any) -> str:
    from pallava.report.table import Table
    from pallava.training.doctor import CARDS_GB

    marks = {"fail": "FAIL"}
    rows = [[marks.get(each.status, each.status), each.check, each.text] for each in report.findings]
    text = Table("", ["", "check", "found"], rows, is_text=True).to_text()
    if not report.memory:
        return text
    parts = ["weights", "gradients", "optimizer", "buffers", "activations", "cuda", "total"]
    header = ["runner", "checkpointing", *parts, *(f"fits {size}" for size in CARDS_GB)]
    plans = [plan.to_dict() for plan in report.memory]
    numbers = [[f"{plan[part] / 1e9:.1f}" for part in parts] for plan in plans]
    fits = [["yes" if size in plan["fits_gb"] else "no" for size in CARDS_GB] for plan in plans]
    names = [[plan["runner"], str(plan["activation_checkpointing"])] for plan in plans]
    cells = [[*name, *number, *fit] for name, number, fit in zip(names, numbers, fits, strict=True)]
    return f"{text}\n\n{Table('GB on a card in the longest batch:', header, cells).to_text()}"


def run_pretrain(
    pairs: Annotated[Path, "JSON list or JSONL of {image, caption}"],
    out: Annotated[Path, "output folder; an unfinished training in it is resumed"],
    *,
    image_folder: Annotated[Path, "folder that the image names are relative to"],
    model_name: Annotated[
        str, "CLIP ViT to train: open_clip's name, or a JSON description (default: ViT-B-16-quickgelu)"
    ] = "",
    pretrained: Annotated[
        str | None,
        "weights to start from, or `none` (default: openai's for the default model, none for another)",
        {"metavar": "TAG|FILE"},
    ] = None,
    augment: Annotated[bool, "random turns, flips and stains of each picture"] = False,
    shards: Annotated[int, "number of WebDataset shards; 0 reads files", {"metavar": "N"}] = 0,
    passed_on: Sequence[str] = (),
) -> int:
    """Train the encoder, PLIP, by contrast on pairs of image and caption, with open_clip's own trainer."""
    from pallava.pretraining.run import DEFAULT_MODEL, DEFAULT_WEIGHTS, Pretraining, TrainerFailed, pretrain

    if pretrained is None:
        pretrained = "" if model_name else DEFAULT_WEIGHTS
    settings = Pretraining(
        pairs,
        image_folder,
        out,
        model=model_name or DEFAULT_MODEL,
        pretrained="" if pretrained == "none" else pretrained,
        shards=shards,
        augment=augment,
        options=tuple(passed_on),
    )
    try:
        encoder = pretrain(settings, read_launch(os.environ), sys.stderr.write)
    except TrainerFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.code
    print(encoder)
    return 0
