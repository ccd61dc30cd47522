"""Writes the model card of a model folder, or puts scores into it.

What was written into the card by hand stays: only the scores of the same task and data are replaced. A folder without
a card gets one.

Example:
  pallava card pa-llava
  pallava card pa-llava --scores evaluation/results.json
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="folder that `pallava convert` wrote")
    parser.add_argument(
        "--scores", action="append", default=[], help="results.json of `pallava evaluate`; may be given several times"
    )


def run(options: argparse.Namespace) -> int:
    """Writes it."""
    from pallava.errors import PallavaError
    from pallava.model.checkpoints import read_json
    from pallava.model.model_card import CARD, add_scores, write_model_card

    card = Path(options.model) / CARD
    if not card.is_file():
        write_model_card(options.model)
    for path in map(Path, options.scores):
        if not path.is_file():
            raise PallavaError(f"No results at {path}: `pallava evaluate` writes results.json into its folder.")
        results = read_json(path)
        add_scores(options.model, results if isinstance(results, dict) else {})
    print(card)
    return 0
