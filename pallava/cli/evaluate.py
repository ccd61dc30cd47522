"""Measure what a model knows.

MODEL is a folder of a whole PA-LLaVA, whose answers are scored: PathVQA, PMC-VQA, captions, classes of images, or
questions of your own, JSONL of {"image" ("" for none), "question", "answer"} and optionally "id", "kind" (open, closed
or choice), "choices" and "group". Every score stands beside its controls: the majority answer, with --training the
training material's most frequent answer to the question, and answers about shuffled images; captions, which are
hardly ever equal, are compared with another image's caption in the place of the first two. The same command resumes a
stopped evaluation, and asks again about images that could not be opened. Several processes and nodes, which must share
the output folder, are started by NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `pallava train` does.

Or it is a CLIP, measured without any training on the data: zero-shot classification, and retrieval. It is a folder of
`pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint, or an open_clip name. Embeddings are stored by
content and model below PALLAVA_CACHE (default: ~/.cache/pallava): a second run, or other templates, take seconds.

Examples:
  pallava evaluate pa-llava pathvqa --data PathVQA --exclude leak.exclude.txt --training instruction.jsonl
  pallava evaluate pa-llava pmc-vqa --data PMC-VQA --split test_clean --batch-size 32
  pallava evaluate pa-llava custom --data questions.jsonl --consistency --out mine
  pallava evaluate pa-llava custom --data csv=mine.csv --columns image=file,question=asked,answer=said
  pallava evaluate pa-llava zero-shot --data bach=BACH --out bach
  pallava evaluate plip zero-shot --data bach=BACH --data nct-crc-he=CRC-VAL-HE-7K --out evaluation
  pallava evaluate epoch_10.pt zero-shot --model-name ViT-B-16-quickgelu --data tissue --template "an H&E image of {}."
  pallava evaluate ViT-B-16-quickgelu retrieval --pretrained openai --data pairs.jsonl --image-folder images
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from pallava.errors import PallavaError

_FAILED = 2
_KINDS: dict[Any, dict[str, Any]] = {
    bool: {"action": "store_true"},
    int: {"type": int},
    int | None: {"type": int},
    Path | None: {"type": Path},
    Sequence[str]: {"action": "append"},
    str | Mapping[str, str] | None: {"metavar": "KEY=COLUMN,..."},
}
"""What argparse must know of a field that is not a text, by its type."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of the tasks' rows."""
    from pallava.evaluation.answers.items import EvaluateOptions
    from pallava.evaluation.tasks import TASKS

    parser.add_argument("model", help="folder of a model, checkpoint of an encoder, or name that open_clip knows")
    text = "task; each lists its options by --help"
    tasks = parser.add_subparsers(dest="task", required=True, metavar=f"{{{','.join(TASKS)}}}", help=text)
    for task in TASKS.values():
        add = tasks.add_parser(task.name, help=task.help).add_argument
        add("--data", action="append", required=True, help=task.data)
        add("--out", type=Path, help="output folder (default: evaluation/TASK, or evaluation for an encoder)")
        for name, hint in get_type_hints(EvaluateOptions, include_extras=True).items():
            if name in task.option_names():
                add(f"--{name.replace('_', '-')}", help=hint.__metadata__[0], **_KINDS.get(hint.__origin__, {}))


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the tables, and write the results."""
    from pallava.evaluation.answers.items import EvaluateOptions
    from pallava.evaluation.encoders.load import model_kind
    from pallava.evaluation.report import report_text
    from pallava.evaluation.run import evaluate
    from pallava.io.launch import read_launch

    is_encoder = model_kind(options.model) == "encoder"
    if not is_encoder and "RANK" not in os.environ and read_launch(os.environ).processes > 1:
        return _launch(options.words)
    out = options.out or Path("evaluation", *([] if is_encoder else [options.task]))
    values = {field.name: getattr(options, field.name, None) for field in fields(EvaluateOptions)}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        report = evaluate(options.model, options.task, options.data, out, **given)
    except PallavaError:
        if os.environ.get("RANK", "0") != "0":  # the first process reports it
            return _FAILED
        raise
    if report:
        print(report_text(report))
        print(f"\n{out / 'index.html'}")
    return 0


def _launch(words: list[str]) -> int:
    """Start several processes that run the same command."""
    from pallava.io.launch import read_launch, run_processes

    launch = read_launch(os.environ)
    os.environ.update(launch.environment)  # torchrun passes its own on to the processes
    failed = run_processes([*launch.torchrun, "-m", "pallava", "evaluate", *words])
    if failed is None or failed[1] == _FAILED:  # that process has reported what went wrong
        return failed[1] if failed else 0
    rank, code = failed
    raise PallavaError(f"process {rank} ended with exit code {code}; the same command resumes the evaluation")
