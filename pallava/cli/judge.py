"""Compares what a model said with references: captions, or answers to questions.

PREDICTIONS is the predictions.jsonl of `pallava evaluate`, or its folder. A language model behind an OpenAI-compatible
endpoint grades how near each answer comes in meaning, from 0 to 10; captions are also compared word by word (BLEU,
ROUGE), which is all that is done without --url. The key is read from PALLAVA_API_KEY, else OPENAI_API_KEY. Grades are
kept in OUT as they come: a stopped run goes on by the same command, and nothing is asked twice. As a control have
predictions_shuffled.jsonl judged, too, what the model said of other images: that grade needs no look at the right one.

Examples:
  pallava judge evaluation/caption/predictions.jsonl
  pallava judge evaluation/caption --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct --concurrency 16
  pallava judge evaluation/caption/predictions_shuffled.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError

STORE = "grades.sqlite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add("predictions", type=Path, help="what `pallava evaluate` wrote")
    add("--url", help="of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    add("--model", help="name of the language model there")
    add("--concurrency", type=int, default=8, help="requests at a time (default: %(default)s)")
    where = "folder for results (default: beside PREDICTIONS judge, of another file NAME.jsonl judge_NAME)"
    add("--out", type=Path, help=where)
    add("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Judges, prints the tables, and writes the results."""
    from pallava.evaluation.answers.caption_scores import score_captions
    from pallava.evaluation.answers.judge_report import tables, write_judge_report
    from pallava.evaluation.answers.predictions import read_predictions
    from pallava.evaluation.report import as_text
    from pallava.judging.endpoint import Endpoint

    if bool(options.url) != bool(options.model):
        raise PallavaError("a judge needs both --url and --model; without either, words alone are compared")
    endpoint = Endpoint(options.url, options.model, concurrency=options.concurrency) if options.url else None
    answered = read_predictions(options.predictions)
    captions = [each for each in answered if each.item.kind == "caption"]
    if not endpoint and not captions:
        raise PallavaError(
            f"'{options.predictions}' holds no captions, and only captions are compared by words: give --url and "
            "--model to have answers judged; `pallava evaluate` has scored them by rules"
        )
    out = options.out or _folder(options.predictions)
    judgements, similarity = _ask(answered, endpoint, out, options.seed) if endpoint else ([], None)
    report = {
        "predictions": str(options.predictions),
        "counts": dict(Counter(each.item.kind for each in answered)),
        "similarity": similarity,
        "words": score_captions(captions, seed=options.seed) if captions else None,
    }
    write_judge_report(report, judgements, out)
    print("\n\n".join(map(as_text, tables(report))))
    print(f"\n{out / 'results.json'}")
    return 0


def _folder(predictions: Path) -> Path:
    """Where results go: beside the predictions, apart from those of another file."""
    if predictions.is_dir():
        return predictions / "judge"
    return predictions.parent / ("judge" if predictions.name == "predictions.jsonl" else f"judge_{predictions.stem}")


def _ask(answered: list[Any], endpoint: Any, out: Path, seed: int) -> tuple[list[Any], dict[str, Any]]:
    from pallava.io.store import Store
    from pallava.judging.judge import judge, score_judgements
    from pallava.judging.prompts import ANSWER_SIMILARITY, CAPTION_SIMILARITY

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PallavaError(f"cannot write the results to {out}: {error.strerror}") from None
    with Store(out / STORE) as store:
        judgements = judge(answered, endpoint, store)
    images = [each.item.image for each in answered]
    prompts = {"caption": CAPTION_SIMILARITY.version, "answer": ANSWER_SIMILARITY.version}
    about = {"model": endpoint.model, "url": endpoint.base_url, "prompt_versions": prompts}
    return judgements, {"judge": about, **score_judgements(judgements, images, seed=seed)}
