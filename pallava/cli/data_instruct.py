"""Writes the training file of instruction tuning from sources of questions.

Each source is NAME=ROOT (path-vqa, pmc-vqa), or the kept.jsonl of `pallava data clean`. All training questions of
PathVQA and the 15,788 of PMC-VQA that PA-LLaVA kept make its 35,543 rows.

Example:
  pallava data instruct instruction.jsonl --source path-vqa=/data/pathvqa --source clean/kept.jsonl
"""

import argparse
import json
from pathlib import Path

from pallava.errors import PallavaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("out", help="JSONL to write; replaced at the end if it is there")
    parser.add_argument("--source", action="append", required=True, help="NAME=ROOT or kept.jsonl; may be repeated")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="[NAME=]SPLIT",
        help="of all sources given as NAME=ROOT, or of one, such as pmc-vqa=train_2 (default: train)",
    )
    parser.add_argument("--weights", default="", help="how often to take each row, such as path-vqa=2,pmc-vqa=0.5")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of fractions (default: %(default)s)")
    parser.add_argument("--image-folder", help="what image names become relative to (default: what holds all roots)")
    parser.add_argument("--report", help="JSON file for the counts")


def run(options: argparse.Namespace) -> int:
    """Writes the file and prints what came from where."""
    from pallava.data.instruction import write_instruction_file
    from pallava.data.material import open_material

    splits = _read_splits(options.split)
    summary = write_instruction_file(
        [open_material(text, split=splits.get(text.partition("=")[0], splits[""])) for text in options.source],
        options.out,
        weights=_read_weights(options.weights),
        seed=options.seed,
        image_folder=options.image_folder,
    )
    print(f"{'source':<16}{'records':>10}{'questions':>11}{'weight':>8}{'rows':>10}")
    for name, count in summary.sources.items():
        print(f"{name:<16}{count.num_records:>10}{count.num_questions:>11}{count.weight:>8g}{count.num_written:>10}")
        for reason, number in count.dropped.items():
            print(f"  left out: {reason:<18}{number:>6}, as {'; '.join(summary.examples.get(reason, [])[:1])}")
    print(f"\nwrote {summary.num_written} rows to {options.out}; image folder: {summary.image_folder}")
    print(f"next: pallava data check {options.out} --image-folder {summary.image_folder}")
    if options.report:
        Path(options.report).write_text(json.dumps(summary.to_dict(), indent=2) + "\n", encoding="utf-8")
    return 0


def _read_splits(texts: list[str]) -> dict[str, str]:
    """Split by name of the source; that of the others stands under no name."""
    splits = {"": "train"}
    for text in texts:
        name, _, split = text.rpartition("=")
        splits[name] = split
    return splits


def _read_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise PallavaError(f"'{part}' is not a weight; expected NAME=NUMBER, such as path-vqa=2") from None
    return weights
