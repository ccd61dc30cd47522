#!/usr/bin/env python
"""Writes the training file of domain alignment from pairs of image and caption."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = """example:
  python tools/dataformat.py --input pairs.json --image-folder images --output train.jsonl

  pairs.json:  [{"image": "a.jpg", "caption": "Glands with ..."}, ...]   or one such object a line
  train.jsonl: {"id": "pairs-00000000", "image": "a.jpg", "conversations": [...]}
"""


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser; its help ends with an example."""
    parser = argparse.ArgumentParser(
        prog="dataformat.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, help="JSON list or JSONL of {image, caption}")
    add("--image-folder", required=True, help="what the image names are relative to")
    add("--output", required=True, help="JSONL to write; replaced at the end if it is there")
    add("--seed", type=int, default=0, help="of the draws of prompt and order (default: 0)")
    add("--max-pixels", type=int, default=None, help="leave out larger images (default: 16777216)")
    add("--prompts", help="file of question wordings, one a line (default: our own)")
    add("--id-prefix", help="what ids begin with (default: the input's name and a hyphen)")
    add("--workers", type=int, default=None, help="processes (default: one a core, at most 16)")
    add("--report", help="JSON file for the counts")
    add("--left-out", help="JSONL for the reason and position of every record that is left out")
    return parser


def main(arguments: list[str]) -> int:
    """Runs the command; 0 if rows were written, 2 if the user must change something."""
    parser = make_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))  # runs from a checkout where nothing is installed
    from pallava.data.training_file import MAX_PIXELS, read_prompts, write_training_file
    from pallava.errors import PallavaError
    from pallava.prompts import CAPTION_PROMPTS

    try:
        summary = write_training_file(
            options.input,
            options.image_folder,
            options.output,
            prompts=read_prompts(options.prompts) if options.prompts else CAPTION_PROMPTS,
            seed=options.seed,
            max_pixels=MAX_PIXELS if options.max_pixels is None else options.max_pixels,
            num_workers=min(os.cpu_count() or 1, 16) if options.workers is None else options.workers,
            id_prefix=options.id_prefix,
            left_out=options.left_out,
        )
        print_summary(summary.to_dict(), options.output)
        if options.report:
            Path(options.report).write_text(json.dumps(summary.to_dict(), indent=2) + "\n", encoding="utf-8")
    except (PallavaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def print_summary(summary: dict, output: str) -> None:
    """Prints how many rows were written, and of each reason how many were left out and the first few."""
    print(f"wrote {summary['num_written']} rows of {summary['num_records']} records to {output}; left out:")
    for reason, count in summary["left_out"].items():
        print(f"  {reason:15} {count:8}")
    for reason, messages in summary["examples"].items():
        for message in messages:
            print(f"{reason}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
