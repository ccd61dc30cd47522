"""Evaluation of CLIP encoders: zero-shot classification, retrieval, pointing, and what a model looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pallava.devices import find_device
from pallava.errors import PallavaError
from pallava.evaluation.encoders import retrieval, zero_shot
from pallava.evaluation.encoders.embeddings import EmbeddingCache, default_cache
from pallava.evaluation.encoders.load import Encoder, load_encoder
from pallava.evaluation.examples import CaptionedImages, LabelledImages, read_captioned, read_class_set, read_labelled

__all__ = ["TASKS", "evaluate_encoder"]

TASKS = ("zero-shot", "retrieval")


def evaluate_encoder(
    source: str | Path,
    task: str,
    data: Mapping[str, tuple[str, Path]],
    *,
    model_name: str | None = None,
    pretrained: str | None = None,
    class_set: Path | None = None,
    templates: Sequence[str] = (),
    image_folder: Path | None = None,
    split: str | None = None,
    cache: Path | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate a CLIP on data sets.

    Args:
        source: Folder, checkpoint or open_clip name of the CLIP, as `load_encoder` takes it.
        task: "zero-shot" or "retrieval".
        data: By the label in the report, the name of a public set (or an empty text) and its path.
        model_name: open_clip's name of a checkpoint's model, or a JSON description.
        pretrained: open_clip's name of the weights, if `source` is an open_clip name.
        class_set: JSON file with the classes in words (zero-shot).
        templates: Sentences in the place of those of the class set (zero-shot).
        image_folder: Folder of a file's images (retrieval; default: beside the file).
        split: Split of public sets that have several.
        cache: Folder of embeddings (default: `default_cache`).
        batch_size: Images at once (default: 64).
        seed: Seed of the bootstrap.
        device: Device that computes: "auto", "cpu", "cuda", ...

    Returns:
        The report: ``model``, ``task``, ``kind`` and the results by label in ``data``.

    Raises:
        PallavaError: The task is unknown, or the model or the data cannot be read.
    """
    if task not in TASKS:
        raise PallavaError(f"an encoder can be evaluated in {' and '.join(TASKS)}, got {task!r}")
    # Read the data before loading the model, so that a wrong path fails at once.
    read: dict[str, Any] = {}
    for label, (name, path) in data.items():
        if task == "retrieval":
            read[label] = read_captioned(path, name, image_folder=image_folder, split=split)
        else:
            words = read_class_set(class_set) if class_set else None
            read[label] = read_labelled(path, name, class_set=words, templates=templates, split=split)
    encoder = load_encoder(str(source), model_name=model_name, pretrained=pretrained, device=find_device(device))
    store = EmbeddingCache(cache or default_cache(), encoder)
    results = {label: _evaluate(encoder, each, store, batch_size or 64, seed) for label, each in read.items()}
    return {"model": str(source), "task": task, "kind": "encoder", "data": results}


def _evaluate(
    encoder: Encoder, data: LabelledImages | CaptionedImages, cache: EmbeddingCache, batch_size: int, seed: int
) -> dict[str, Any]:
    if isinstance(data, CaptionedImages):
        return retrieval.evaluate(encoder, data, cache, batch_size=batch_size, seed=seed)
    run = zero_shot.by_embedding(encoder, cache, batch_size=batch_size)
    return zero_shot.evaluate(run, data, seed=seed)
