"""Measures what a model knows.

MODEL is a folder of a whole PA-LLaVA, which is asked and whose answers are scored: PathVQA, PMC-VQA, captions, classes
of images, or questions of your own, JSONL of {"image" ("" for none), "question", "answer"} and, if wanted, "id", "kind"
(open, closed or choice), "choices" and "group". Every score stands beside its controls: the majority answer, with
--training the training material's most frequent answer to the question, and answers to shuffled images; captions, which
hardly ever come twice, are held against another image's caption in the place of the first two. The same command goes on
where it was stopped, and tries images again that could not be opened; several processes and nodes, which must share the
folder of results, are started by NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT, as `pallava train` does.

Or it is a CLIP, measured without any training on the data: zero-shot classification, and retrieval. It is a folder of
`pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint, or an open_clip name. Embeddings are kept by
content and model: a second run, or other templates, cost seconds.

Examples:
  pallava evaluate pa-llava pathvqa --data PathVQA --exclude leak.exclude.txt --training instruction.jsonl
  pallava evaluate pa-llava pmc-vqa --data PMC-VQA --split test_clean --batch-size 32
  pallava evaluate pa-llava custom --data questions.jsonl --consistency --out mine
  pallava evaluate pa-llava zero-shot --data bach=BACH --out bach
  pallava evaluate plip zero-shot --data bach=BACH --data nct-crc-he=CRC-VAL-HE-7K --out evaluation
  pallava evaluate epoch_10.pt zero-shot --model-name ViT-B-16-quickgelu --data tissue --template "an H&E image of {}."
  pallava evaluate ViT-B-16-quickgelu retrieval --pretrained openai --data pairs.jsonl --image-folder images
"""

import argparse
import re
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError

_ASKED = {
    "pathvqa": "questions of PathVQA",
    "pmc-vqa": "questions of PMC-VQA",
    "custom": "questions of your own",
    "caption": "what does this image show?",
    "zero-shot": "which of some classes is this?",
}
"""Tasks of a whole PA-LLaVA, which answers."""
_OF_ASKING = ("limit", "exclude", "max_new_tokens", "consistency", "without_shuffled", "base_llm", "training")
_EMBEDDED = {
    "zero-shot": _ASKED["zero-shot"],
    "retrieval": "which caption belongs to this image, and the other way round?",
}
"""Tasks of a CLIP, which embeds."""
_CAPTIONS = ("[NAME=]PATH", "JSONL of image and caption, or a public set of captions such as quilt-1m=FOLDER")
_CLASSES = "folder of classes (FOLDER/<class>/*.png), or a public set: bach, oscc, colonpath, nct-crc-he; repeatable"
_DATA = {
    "pathvqa": ("FOLDER", "the folder of PathVQA"),
    "pmc-vqa": ("FOLDER", "the folder of PMC-VQA"),
    "custom": ("FILE", "JSONL of image, question, answer"),
    "caption": _CAPTIONS,
    "zero-shot": ("[NAME=]FOLDER", _CLASSES),
    "retrieval": (_CAPTIONS[0], f"{_CAPTIONS[1]}; repeatable"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="folder, checkpoint, or name that open_clip knows")
    tasks = parser.add_subparsers(dest="task", required=True, metavar=f"{{{','.join([*_ASKED, 'retrieval'])}}}")
    added = {name: tasks.add_parser(name, help=text) for name, text in {**_ASKED, **_EMBEDDED}.items()}
    for name, text in _DATA.items():
        added[name].add_argument("--data", action="append", required=True, metavar=text[0], help=text[1])
    for name in ("custom", "caption", "retrieval"):
        where = "where the images of a JSONL lie (default: beside it)"
        added[name].add_argument("--image-folder", type=Path, help=where)
    for name in ("pathvqa", "pmc-vqa", "custom", "zero-shot"):
        what = "training file, for the most frequent answer to a question as control"
        added[name].add_argument("--training", type=Path, metavar="FILE", help=what)
    _add_zero_shot(added["zero-shot"])
    for name in _ASKED:
        _add_asking(added[name])
    for name, task in added.items():
        _add_common(task, is_embedded=name in _EMBEDDED)


def _add_zero_shot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--class-set", type=Path, help="JSON file with names (and templates) of the classes")
    parser.add_argument(
        "--template",
        action="append",
        help="for a CLIP: sentence with {} for the class; repeatable; replaces those of the set",
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("asking a PA-LLaVA")
    group.add_argument("--limit", type=_positive, metavar="N", help="ask the first N questions of each data set only")
    group.add_argument(
        "--exclude", type=Path, metavar="FILE", help="ids to leave out, as `pallava data leak` lists them"
    )
    group.add_argument("--max-new-tokens", type=_positive, metavar="N", help="length of an answer (by task: 32 to 256)")
    group.add_argument(
        "--consistency", action="store_true", help="ask again on scaled, turned, flipped and stain-shifted images"
    )
    group.add_argument(
        "--without-shuffled", action="store_true", help="leave out the control that shows other questions' images"
    )
    group.add_argument("--base-llm", help="where the base language model lies, if the folder holds an adapter to it")


def _add_common(parser: argparse.ArgumentParser, is_embedded: bool) -> None:
    if is_embedded:
        group = parser.add_argument_group("opening a CLIP")
        group.add_argument("--model-name", help="of a checkpoint: open_clip's name of its model, or a JSON description")
        group.add_argument("--pretrained", help="of an open_clip name: which weights")
        group.add_argument("--cache", type=Path, help="folder for embeddings (~/.cache/pallava/embeddings)")
    parser.add_argument("--split", help="of public sets that have several (of questions: test)")
    parser.add_argument("--out", type=Path, help="folder for results (evaluation; of a PA-LLaVA evaluation/TASK)")
    parser.add_argument("--batch-size", type=int, help="questions (16) or images of a CLIP (64) at once")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of shuffled images (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, ... (%(default)s)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, not {number}")
    return number


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints the tables, and writes the results."""
    from pallava.evaluation.encoders.load import model_kind

    if options.batch_size is not None and options.batch_size < 1:
        raise PallavaError(f"the batch size must be at least 1, not {options.batch_size}")
    data = _named(options.data)
    kind = model_kind(options.model)
    tasks, runner = {"encoder": (_EMBEDDED, _run_encoder), "pallava": (_ASKED, _run_model)}[kind]
    if options.task not in tasks:
        if options.task in _ASKED and not Path(options.model).exists():  # no name of an encoder is meant
            raise PallavaError(f"No model folder at {options.model}: the path does not exist.")
        what = "a whole PA-LLaVA, which answers" if kind == "pallava" else "no PA-LLaVA, and an encoder embeds"
        raise PallavaError(
            f"{options.model} is {what}: it can be examined in {', '.join(tasks)}, not in {options.task}"
        )
    if kind == "encoder" and (unused := [name for name in _OF_ASKING if getattr(options, name, None)]):
        raise PallavaError(f"--{unused[0].replace('_', '-')} is for a whole PA-LLaVA; {options.model} is an encoder")
    return runner(options, data)


def _run_model(options: argparse.Namespace, data: dict[str, tuple[str, Path]]) -> int:
    from pallava.cli.evaluate_answers import run_model

    if options.task == "zero-shot" and (options.template or options.model_name or options.pretrained):
        raise PallavaError(f"{options.model} is asked: --template, --model-name and --pretrained are for a CLIP")
    return run_model(options, data)


def _run_encoder(options: argparse.Namespace, data: dict[str, tuple[str, Path]]) -> int:
    from pallava.evaluation.encoders import evaluate_encoder
    from pallava.evaluation.report import as_text, tables, write_report

    out = options.out or Path("evaluation")
    report = evaluate_encoder(
        options.model,
        options.task,
        data,
        model_name=options.model_name,
        pretrained=options.pretrained,
        class_set=getattr(options, "class_set", None),
        templates=getattr(options, "template", None) or (),
        image_folder=getattr(options, "image_folder", None),
        split=options.split,
        cache=options.cache,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
    )
    results = report["data"]
    write_report(report, out)
    print("\n\n".join(map(as_text, tables(report))))
    for name, result in results.items():
        for reason, count in result["left_out"].items():
            print(f"{name}: left out {count} x {reason}")
    print(f"\n{out / 'index.html'}")
    return 0


def read_classes(options: argparse.Namespace, name: str, path: Path) -> Any:
    """Images with classes, these in the words that the user has given."""
    from pallava.evaluation.examples import read_class_set, read_labelled

    class_set = read_class_set(options.class_set) if options.class_set else None
    labelled = read_labelled(path, name, class_set=class_set, split=options.split)
    if options.template:
        labelled.class_set = labelled.class_set.with_templates(options.template)
    return labelled


def _named(given: list[str]) -> dict[str, tuple[str, Path]]:
    """Label in the report to (name of a public set or nothing, path)."""
    data: dict[str, tuple[str, Path]] = {}
    for text in given:
        name, _, path = text.partition("=") if re.match(r"[a-z][a-z0-9_-]*=", text) else ("", "", text)
        label = name or Path(path).resolve().stem
        if label in data:
            raise PallavaError(f"two data sets would be called {label!r} in the report; evaluate one at a time")
        data[label] = name, Path(path)
    return data
