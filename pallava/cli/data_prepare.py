"""Tokenizes training files ahead of training into a folder that a config's data_path can name.

Training does the same by itself and keeps the result in a cache; do it ahead for a large set, or where the nodes
share no cache. The settings must be those of the config.

Example:
  pallava data prepare data/domain_alignment.jsonl data/domain_alignment --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
"""

import argparse
from pathlib import Path

from pallava.errors import PallavaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("data", help="a JSONL or JSON file, or a folder of such files")
    parser.add_argument("out", help="folder to write; must not exist")
    parser.add_argument("--tokenizer", required=True, help="the config's llm_name_or_path")
    parser.add_argument("--prompt-template", default="llama3_chat", help="default: %(default)s")
    parser.add_argument("--context-length", type=int, default=2048, help="default: %(default)s")
    parser.add_argument(
        "--num-visual-tokens", type=int, default=196, help="what the encoder gives for a tile (default: %(default)s)"
    )
    parser.add_argument("--num-proc", type=int, default=1, help="processes (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Prepares."""
    out = Path(options.out)
    if out.exists():
        raise PallavaError(f"{out} exists already; give another folder, or remove it")
    from pallava.data.tokenize import Settings, load_prepared, training_files, write_prepared
    from pallava.model.language_models import open_tokenizer

    files = training_files(Path(options.data))
    tokenizer = open_tokenizer(options.tokenizer)
    settings = Settings.make(tokenizer, options.prompt_template, options.context_length, options.num_visual_tokens)
    write_prepared(files, out, tokenizer, settings, num_proc=options.num_proc)
    print(f"{out}: {load_prepared(out, settings).describe()}")
    return 0
