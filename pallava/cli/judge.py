"""Compare generated captions, or answers to questions, with their references.

PREDICTIONS is the predictions.jsonl of `pallava evaluate`, or its folder. A language model behind an OpenAI-compatible
endpoint grades how near each answer comes in meaning, from 0 to 10; captions are also compared word by word (BLEU,
ROUGE), and by words alone without --url. The key is read from PALLAVA_API_KEY, else OPENAI_API_KEY. Grades are stored
in OUT as they come: the same command resumes a stopped run, and nothing is asked twice. As a control, have
predictions_shuffled.jsonl judged, too: the answers about other images.

Examples:
  pallava judge evaluation/caption/predictions.jsonl
  pallava judge evaluation/caption --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct --concurrency 16
  pallava judge evaluation/caption/predictions_shuffled.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("predictions", type=Path, help="predictions.jsonl of `pallava evaluate`, or its folder")
    add("--url", help="URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    add("--model", help="name of the language model there")
    add("--concurrency", type=int, default=8, help="number of requests at a time (default: %(default)s)")
    add("--out", type=Path, help="output folder (default: judge beside PREDICTIONS; for a file NAME.jsonl judge_NAME)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Judge the predictions, and print the tables."""
    from pallava.evaluation.answers.similarity import judge_predictions, results_folder, similarity_tables

    how = {"url": options.url, "model": options.model, "concurrency": options.concurrency, "seed": options.seed}
    out = options.out or results_folder(options.predictions)
    report = judge_predictions(options.predictions, out, **how)
    print("\n\n".join(table.to_text() for table in similarity_tables(report)))
    print(f"\n{out / 'results.json'}")
    return 0
