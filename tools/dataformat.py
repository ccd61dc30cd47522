#!/usr/bin/env python
"""Write the training file of domain alignment from pairs of image and caption."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = """example:
  python tools/dataformat.py --input pairs.json --image-folder images --output train.jsonl

  pairs.json:  [{"image": "a.jpg", "caption": "Glands with ..."}, ...]   or one such object a line
  train.jsonl: {"id": "pairs-00000000", "image": "a.jpg", "conversations": [...]}
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; its help ends with an example."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("dataformat.py", description=__doc__, epilog=EXAMPLE, formatter_class=form)
    add = parser.add_argument
    add("--input", required=True, help="JSON list or JSONL of {image, caption}")
    add("--image-folder", required=True, help="folder that image names are relative to")
    add("--output", required=True, help="JSONL to write; an existing one is replaced at the end")
    add("--seed", type=int, default=0, help="random seed of prompts and their order (default: 0)")
    add("--max-pixels", type=int, help="maximum number of pixels; larger images are left out (default: 16777216)")
    add("--prompts", help="text file of question wordings, one on each line (default: built-in)")
    add("--id-prefix", help="beginning of ids (default: the input's name and a hyphen)")
    add("--workers", type=int, help="number of processes (default: one for each core, at most 16)")
    add("--report", help="JSON file for the counts")
    add("--left-out", help="JSONL for the reason and position of every record that is left out")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command; return 0 if rows were written, 2 if the user must change something."""
    parser = make_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout where nothing is installed
    from pallava.data.training_file import MAX_PIXELS, read_prompts, write_training_file
    from pallava.errors import PallavaError
    from pallava.io.files import write_json
    from pallava.io.processes import default_num_workers
    from pallava.prompts import CAPTION_PROMPTS

    try:
        summary = write_training_file(
            options.input,
            options.output,
            image_folder=options.image_folder,
            prompts=read_prompts(options.prompts) if options.prompts else CAPTION_PROMPTS,
            seed=options.seed,
            max_pixels=MAX_PIXELS if options.max_pixels is None else options.max_pixels,
            num_workers=default_num_workers() if options.workers is None else options.workers,
            id_prefix=options.id_prefix,
            left_out=options.left_out,
        )
        if options.report:
            write_json(options.report, summary.to_dict())
    except (PallavaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"wrote {summary.num_written} rows of {summary.num_records} records to {options.output}; left out:")
    for reason, count in summary.left_out.items():
        print(f"  {reason:15} {count:8}")
    for reason, messages in summary.examples.items():
        for message in messages:
            print(f"{reason}: {message}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
