"""Checks a training file before training: images, markers, turns, answers, ids and, with a tokenizer, the length.

The exit code is 0 if every row is sound, 1 if any is not, 2 if the check could not be made.

Example:
  pallava data check instruction.jsonl --image-folder /data --decode --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
"""

import argparse

from pallava.errors import PallavaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("file", help="JSONL or JSON list of {id, image, conversations}")
    parser.add_argument("--image-folder", required=True, help="what image names are relative to")
    parser.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    parser.add_argument("--tokenizer", help="the config's llm_name_or_path; counts the tokens of each row")
    parser.add_argument("--prompt-template", default="llama3_chat", help="default: %(default)s")
    parser.add_argument("--context-length", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--num-visual-tokens", type=int, default=196, help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="processes (default: one a core, at most 16)")


def run(options: argparse.Namespace) -> int:
    """Prints the counts; 1 if a row is at fault."""
    from pallava.data.check import Room, check_training_file
    from pallava.io.processes import default_num_workers

    room = None
    if options.tokenizer:
        room = Room(options.tokenizer, options.prompt_template, options.context_length, options.num_visual_tokens)
    num_workers = default_num_workers() if options.workers is None else options.workers
    if num_workers < 1:
        raise PallavaError(f"--workers is {num_workers}; expected 1 or more")
    report = check_training_file(
        options.file, options.image_folder, is_decoding=options.decode, room=room, num_workers=num_workers
    )
    print(f"{report.num_faulty} of {report.num_rows} rows of {options.file} are at fault")
    for reason, count in report.faults.items():
        is_skipped = reason == "over_room" and room is None
        print(f"  {reason:<18}{'not checked: give --tokenizer' if is_skipped else f'{count:>8}'}")
        for example in report.examples[reason]:
            print(f"    {example}")
    return int(report.num_faulty > 0)
