"""The commands that measure a model and show what it does: `evaluate`, `judge` and `look`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pallava.cli.options import TrustRemoteCode, add_parameters
from pallava.errors import PallavaError, check_at_least

_FAILED = 2


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of the tasks' rows."""
    from pallava.evaluation.answers.items import EvaluateOptions
    from pallava.evaluation.tasks import TASKS

    parser.add_argument("model", help="folder of a model, checkpoint of an encoder, or name that open_clip knows")
    text = "task; each lists its options by --help"
    tasks = parser.add_subparsers(dest="task", required=True, metavar=f"{{{','.join(TASKS)}}}", help=text)
    text = "output folder (default: evaluation/TASK, or evaluation for an encoder)"
    for task in TASKS.values():
        subparser = tasks.add_parser(task.name, help=task.help)
        subparser.add_argument("--data", action="append", required=True, help=task.data)
        subparser.add_argument("--out", type=Path, help=text)
        add_parameters(subparser, EvaluateOptions, task.option_names())


def run_evaluate(
    model: str, task: str, data: list[str], out: Path | None, words: Sequence[str] = (), **options: Any
) -> int:
    """Measure what a model knows.

    MODEL is a folder of a whole PA-LLaVA, whose answers are scored: PathVQA, PMC-VQA, captions, classes of images, or
    questions of your own, JSONL of {"image" ("" for none), "question", "answer"} and optionally "id", "kind" (open,
    closed or choice), "choices" and "group". Every score stands beside its controls: the majority answer, with
    --training the training material's most frequent answer to the question, and answers about shuffled images;
    captions, which are hardly ever equal, are compared with another image's caption in the place of the first two. The
    same command resumes a stopped evaluation, and asks again about images that could not be opened. Several processes
    and nodes, which must share the output folder, are started by NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as
    `pallava train` does.

    Or it is a CLIP, measured without any training on the data: zero-shot classification, and retrieval. It is a folder
    of `pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint, or an open_clip name. Embeddings are
    stored by content and model in --cache: a second run, or other templates, take seconds.

    Examples:
      pallava evaluate pa-llava pathvqa --data PathVQA --exclude leak.exclude.txt --training instruction.jsonl
      pallava evaluate pa-llava pmc-vqa --data PMC-VQA --split test_clean --batch-size 32
      pallava evaluate pa-llava custom --data questions.jsonl --consistency --out mine
      pallava evaluate pa-llava custom --data csv=mine.csv --columns image=file,question=asked,answer=said
      pallava evaluate pa-llava zero-shot --data bach=BACH --out bach
      pallava evaluate plip zero-shot --data bach=BACH --data nct-crc-he=CRC-VAL-HE-7K --out evaluation
      pallava evaluate clip.pt zero-shot --model-name ViT-B-16-quickgelu --data tissue --template "an H&E image of {}."
      pallava evaluate ViT-B-16-quickgelu retrieval --pretrained openai --data pairs.jsonl --image-folder images
    """
    from pallava.evaluation.encoders.load import model_kind
    from pallava.evaluation.report import report_text
    from pallava.evaluation.run import evaluate
    from pallava.io.launch import read_launch

    is_encoder = model_kind(model) == "encoder"
    if not is_encoder and "RANK" not in os.environ and read_launch(os.environ).processes > 1:
        return _launch(words)
    out = out or Path("evaluation", *([] if is_encoder else [task]))
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
    """Start several processes that run the same command."""
    from pallava.io.launch import read_launch, run_processes

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
    """Compare generated captions, or answers to questions, with their references.

    PREDICTIONS is the predictions.jsonl of `pallava evaluate`, or its folder. A language model behind an
    OpenAI-compatible endpoint grades how near each answer comes in meaning, from 0 to 10; captions are also compared
    word by word (BLEU, ROUGE), and by words alone without --url. The key is read from PALLAVA_API_KEY, else
    OPENAI_API_KEY. Grades are stored in OUT as they come: the same command resumes a stopped run, and nothing is asked
    twice. As a control, have predictions_shuffled.jsonl judged, too: the answers about other images.

    Examples:
      pallava judge evaluation/caption/predictions.jsonl
      pallava judge evaluation/caption --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct --concurrency 16
      pallava judge evaluation/caption/predictions_shuffled.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B
    """
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
    """Draw what a model looks at in an image: overview, tiles, and which of them the connector's attention read.

    With --text also where on the image the text is true, patch by patch; several texts are shown by what tells each
    from the others. That takes a whole CLIP: MODEL itself, or the one that the model's encoder is part of, found where
    `pallava convert` took the encoder from or as plip beside MODEL, or --clip. Attention tells where the model read,
    not why it answers as it does. For research only, not for diagnosis.

    Example:
      pallava look pa-llava --image slide.png --text "an H&E image of necrosis" --text "an H&E image of stroma"
      pallava look pa-llava --image slide.png --text "necrosis" --clip plip
    """
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
