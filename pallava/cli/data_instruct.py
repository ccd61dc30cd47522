"""Write the training file of instruction tuning from sources of questions.

Each source is NAME=ROOT, csv=FILE with --columns, or the kept.jsonl of `pallava data clean`. All training questions of
PathVQA and the 15,788 of PMC-VQA that PA-LLaVA kept make its 35,543 rows.

Examples:
  pallava data instruct instruction.jsonl --source path-vqa=/data/pathvqa --source clean/kept.jsonl
  pallava data instruct mine.jsonl --source csv=mine.csv --columns image=file,question=text,answer=diagnosis
"""

import argparse

from pallava.errors import PallavaError
from pallava.io.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from pallava.data.material import add_source_options

    add = parser.add_argument
    add("out", help="JSONL file to write; an older one is replaced at the end")
    add_source_options(parser, also=", or a kept.jsonl", default_split="train")
    add("--weights", default="", help="number of times to take each row, such as path-vqa=2,pmc-vqa=0.5 (default: 1)")
    add("--seed", type=int, default=0, help="seed of the order and of fractions (default: %(default)s)")
    add("--image-folder", help="folder to which image names become relative (default: the one above all roots)")
    add("--report", metavar="FILE", help="JSON file for the counts")


def run(options: argparse.Namespace) -> int:
    """Write the file and print the counts of each source."""
    from pallava.data.material import read_sources
    from pallava.data.training_file import write_training_file

    summary = write_training_file(
        read_sources(options.source, options.split, options.columns, default_split="train"),
        options.out,
        image_folder=options.image_folder,
        weights=_read_weights(options.weights),
        seed=options.seed,
    )
    print(f"{'source':<16}{'records':>10}{'questions':>11}{'weight':>8}{'rows':>10}")
    for name, count in summary.sources.items():
        print(f"{name:<16}{count.num_records:>10}{count.num_questions:>11}{count.weight:>8g}{count.num_written:>10}")
        for reason, number in count.dropped.items():
            print(f"  left out: {reason:<18}{number:>6}, as {'; '.join(summary.examples.get(reason, [])[:1])}")
    print(f"\nwrote {summary.num_written} rows to {options.out}; image folder: {summary.image_folder}")
    print(f"next: pallava data check {options.out} --image-folder {summary.image_folder}")
    if options.report:
        write_json(options.report, summary.to_dict())
    return 0


def _read_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise PallavaError(f"a weight must be NAME=NUMBER, such as path-vqa=2, got {part!r}") from None
    return weights
