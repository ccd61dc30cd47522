"""Tokenize training files ahead of training into a folder that a config's data_path can name.

Training does the same by itself and keeps the result in a cache; do it ahead for a large set, or where the nodes
share no cache. The settings must be those of the config.

Example:
  pallava data prepare data/domain_alignment.jsonl data/domain_alignment --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
"""

import argparse
from pathlib import Path

from pallava.errors import PallavaError

TOKENIZER = "name or folder of the tokenizer: the config's llm_name_or_path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("data", help="JSONL or JSON training file, or a folder of such files")
    parser.add_argument("out", help="output folder; must not exist")
    parser.add_argument("--tokenizer", required=True, help=TOKENIZER)
    add_room_arguments(parser)
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")


def add_room_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options on how a row becomes tokens."""
    add = parser.add_argument
    add("--prompt-template", default="llama3_chat", help="name of the chat template (default: %(default)s)")
    add("--context-length", type=int, default=2048, help="maximum number of tokens in a row (default: %(default)s)")
    add(
        "--num-visual-tokens",
        type=int,
        default=196,
        help="maximum number of tokens that the model makes of an image (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the folder and print its counts."""
    out = Path(options.out)
    if out.exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    from pallava.data.tokenize import load_prepared, training_files, write_prepared
    from pallava.data.training_row import EncodingSettings
    from pallava.model.loading import open_tokenizer

    files, tokenizer = training_files(Path(options.data)), open_tokenizer(options.tokenizer)
    room = (options.prompt_template, options.context_length, options.num_visual_tokens)
    settings = EncodingSettings.make(tokenizer, *room)
    write_prepared(files, out, tokenizer, settings, num_workers=options.workers)
    print(f"{out}: {load_prepared(out, settings).describe()}")
    return 0
