"""Measures what a CLIP knows, without any training on the data: zero-shot classification, and retrieval.

The model is a folder of `pallava pretrain`, a Hugging Face CLIP folder, an open_clip checkpoint, or an open_clip
name. Embeddings are kept by content and model: a second run, or other templates, cost seconds.

Examples:
  pallava evaluate plip zero-shot --data bach=BACH --data nct-crc-he=CRC-VAL-HE-7K --out evaluation
  pallava evaluate epoch_10.pt zero-shot --model-name ViT-B-16 --data tissue --template "an H&E image of {}."
  pallava evaluate ViT-B-16 retrieval --pretrained openai --data pairs.jsonl --image-folder images
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="folder, checkpoint, or name that open_clip knows")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{zero-shot,retrieval}")
    zero_shot = tasks.add_parser("zero-shot", help="which of some classes is this?")
    zero_shot.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="folder of classes (FOLDER/<class>/*.png), or a public set: bach, oscc, colonpath, nct-crc-he; repeatable",
    )
    zero_shot.add_argument("--class-set", type=Path, help="JSON file with names (and templates) of the classes")
    zero_shot.add_argument(
        "--template", action="append", help="sentence with {} for the class; repeatable; replaces those of the set"
    )
    retrieval = tasks.add_parser("retrieval", help="which caption belongs to this image, and the other way round?")
    retrieval.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="JSONL of image and caption, or a public set of captions such as quilt-1m=FOLDER; repeatable",
    )
    retrieval.add_argument("--image-folder", type=Path, help="where the images of a JSONL lie (default: beside it)")
    for task in (zero_shot, retrieval):
        _add_common(task)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-name", help="of a checkpoint: open_clip's name of its model, or a JSON description")
    parser.add_argument("--pretrained", help="of an open_clip name: which weights")
    parser.add_argument("--split", help="of public sets that have several")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for results (%(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for embeddings (~/.cache/pallava/embeddings)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, ... (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints the tables, and writes the results."""
    from pallava.evaluation.encoders import model_kind
    from pallava.evaluation.report import as_text, tables, write_report

    if options.batch_size < 1:
        raise PallavaError(f"the batch size must be at least 1, not {options.batch_size}")
    data = _named(options.data)
    kind = model_kind(options.model)
    results = _EVALUATORS[kind](options, data)
    report = {"model": options.model, "task": options.task, "kind": kind, "data": results}
    write_report(report, options.out)
    print("\n\n".join(map(as_text, tables(report))))
    for name, result in results.items():
        for reason, count in result["left_out"].items():
            print(f"{name}: left out {count} x {reason}")
    print(f"\n{options.out / 'index.html'}")
    return 0


def _with_encoder(options: argparse.Namespace, data: dict[str, tuple[str, Path]]) -> dict[str, Any]:
    from pallava.evaluation import retrieval, zero_shot
    from pallava.evaluation.embeddings import EmbeddingCache, default_cache
    from pallava.evaluation.encoders import load_encoder

    # Read first: a wrong path should not be told after the minutes that a large model takes to load.
    read = {label: _read(options, name, path) for label, (name, path) in data.items()}
    encoder = load_encoder(
        options.model,
        model_name=options.model_name,
        pretrained=options.pretrained,
        device=_device(options.device),
    )
    cache = EmbeddingCache(options.cache or default_cache(), encoder)
    if options.task == "retrieval":
        how = {"batch_size": options.batch_size, "seed": options.seed}
        return {label: retrieval.evaluate(encoder, captioned, cache, **how) for label, captioned in read.items()}
    runner = zero_shot.by_embedding(encoder, cache, batch_size=options.batch_size)
    return {label: zero_shot.evaluate(runner, labelled, seed=options.seed) for label, labelled in read.items()}


def _with_pallava(options: argparse.Namespace, data: dict[str, tuple[str, Path]]) -> dict[str, Any]:
    raise PallavaError(
        f"{options.model} is a whole PA-LLaVA, which answers by generation; `pallava evaluate` reads encoders only. "
        "Give the encoder that it was made with."
    )


_EVALUATORS: dict[str, Callable[[argparse.Namespace, dict[str, tuple[str, Path]]], dict[str, Any]]] = {
    "encoder": _with_encoder,
    "pallava": _with_pallava,
}


def _read(options: argparse.Namespace, name: str, path: Path) -> Any:
    from pallava.evaluation.class_sets import read_class_set
    from pallava.evaluation.examples import read_captioned, read_labelled

    if options.task == "retrieval":
        return read_captioned(path, name, image_folder=options.image_folder, split=options.split)
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


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PallavaError(f"there is no device {name!r} here ({str(error).splitlines()[0]})") from None
    return name
