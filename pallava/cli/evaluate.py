"""The commands that measure a model and show what it does: `evaluate`, `judge` and `look`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pallava.cli.options import TrustRemoteCode, add_parameters
from pallava.errors import PallavaError, check_at_least
from pallava.io.launch import read_launch, run_processes

_FAILED = 2


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of the tasks' rows."""
    from pallava.evaluation.answers.items import EvaluateOptions
    from pallava.evaluation.tasks import TASKS

    parser.add_argument("model", help="folder of a model, checkpoint of an encoder, or name that open_clip knows")
    text = "task; each lists its options by --help"
    tasks = parser.add_subparsers(dest="task", required=True, metavar=f"{{{','.join(TASKS)}}}", help=text)
    text = "output folder (default: evaluation/TASK)"
    for task in TASKS.values():
        subparser = tasks.add_parser(task.name, help=task.help)
        subparser.add_argument("--data", action="append", required=True, help=task.data)
        subparser.add_argument("--out", type=Path, help=text)
        add_parameters(subparser, EvaluateOptions, task.option_names())


def run_evaluate(
    model: str, task: str, data: list[str], out: Path | None, words: Sequence[str] = (), **options: Any
) -> int:
    """Measure what a model knows."""
    from pallava.evaluation.encoders.load import model_kind
    from pallava.evaluation.report import report_text
    from pallava.evaluation.run import evaluate

    if model_kind(model) != "encoder" and "RANK" not in os.environ and read_launch(os.environ).processes > 1:
        return _launch(words)
    out = out or Path("evaluation", task)
    try:
        report = evaluate(model, task, data, out, **options)
    except PallavaError:
        if os.environ.get("RANK", "0") != "0":  # the first process reports it
            return _FAILED
        raise
    if report:
        print(report_text(report))
        print(f"\n{out / 'index.html'}")
    return 0


def _launch(words: Sequence[str]) -> int:
    launch = read_launch(os.environ)
    os.environ.update(launch.environment)  # torchrun passes its own on to the processes
    failed = run_processes([*launch.torchrun, "-m", "pallava", "evaluate", *words])
    if failed is None or failed[1] == _FAILED:  # that process has reported what went wrong
        return failed[1] if failed else 0
    rank, code = failed
    raise PallavaError(f"process {rank} ended with exit code {code}; the same command resumes the evaluation")


def run_judge(
    predictions: Annotated[Path, "predictions.jsonl of `pallava evaluate`, or its folder"],
    url: Annotated[str | None, "URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1"] = None,
    model: Annotated[str | None, "name of the language model there"] = None,
    concurrency: Annotated[int, "number of requests at a time"] = 8,
    out: Annotated[
        Path | None, "output folder (default: judge beside PREDICTIONS; for a file NAME.jsonl judge_NAME)"
    ] = None,
    seed: Annotated[int, "seed of the bootstrap"] = 0,
) -> None:
    """Compare generated captions, or answers to questions, with their references."""
    from pallava.evaluation.answers.similarity import judge_predictions, results_folder, similarity_tables

    check_at_least(1, concurrency=concurrency)
    check_at_least(0, seed=seed)
    out = out or results_folder(predictions)
    report = judge_predictions(predictions, out, url=url, model=model, concurrency=concurrency, seed=seed)
    print("\n\n".join(table.to_text() for table in similarity_tables(report)))
    print(f"\n{out / 'results.json'}")


def run_look(
    model: Annotated[str, "folder that `pallava convert` wrote, or a whole CLIP"],
    *,
    image: Annotated[str, "image file"],
    texts: Annotated[Sequence[str], "text to find; needs a CLIP (repeatable)", "--text"] = (),
    clip: Annotated[str | None, "whole CLIP, such as `pallava pretrain` writes (default: the encoder's own)"] = None,
    model_name: Annotated[str, "open_clip's name of the model of an open_clip checkpoint"] = "",
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path, "picture to write"] = Path("look.png"),
) -> None:
    """Draw what a model looks at in an image: overview, tiles, and which of them the connector's attention read."""
    from pallava.evaluation.encoders.look import look

    used = look(model, image, out, texts=texts, clip=clip, model_name=model_name, trust_remote_code=trust_remote_code)
    if texts and used is None:
        print(
            f"note: '{model}' has no text tower, and no whole CLIP was found where its encoder came from, so "
            "the picture does not show the texts; give a CLIP, such as --clip plip",
            file=sys.stderr,
        )
    elif used not in (None, clip, model):
        print(f"texts are compared by the CLIP in {used}")
    print(f"wrote {out}")
