"""Check a training file before training: images, markers, turns, answers, ids and, with a tokenizer, the length.

The exit code is 0 if no row has a fault, 1 if any has, 2 if the check could not be made.

Example:
  pallava data check instruction.jsonl --image-folder /data --decode --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
"""

import argparse

from pallava.cli.data_prepare import TOKENIZER, add_room_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", help="JSONL or JSON list of {id, image, conversations}")
    parser.add_argument("--image-folder", required=True, help="folder that image names are relative to")
    parser.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    parser.add_argument("--tokenizer", help=f"{TOKENIZER}; counts the tokens of each row")
    add_room_arguments(parser)
    parser.add_argument("--workers", type=int, help="number of processes (default: one for each core, at most 16)")


def run(options: argparse.Namespace) -> int:
    """Print the counts; return 1 if a row has a fault."""
    from pallava.data.check import check_training_file
    from pallava.io.processes import default_num_workers

    report = check_training_file(
        options.file,
        options.image_folder,
        decode_images=options.decode,
        tokenizer=options.tokenizer,
        prompt_template=options.prompt_template,
        context_length=options.context_length,
        num_visual_tokens=options.num_visual_tokens,
        num_workers=default_num_workers() if options.workers is None else options.workers,
    )
    print(f"{report.num_faulty} of {report.num_rows} rows of {options.file} are at fault")
    for reason, count in report.faults.items():
        is_skipped = reason == "over_room" and not options.tokenizer
        print(f"  {reason:<18}{'not checked: give --tokenizer' if is_skipped else f'{count:>8}'}")
        for example in report.examples[reason]:
            print(f"    {example}")
    return int(report.num_faulty > 0)
