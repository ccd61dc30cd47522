"""Zero-shot classification: the class whose sentences are nearest to an image.

`report` and `score` are the same for the answers of a PA-LLaVA. Letters in shapes: N images, C classes, D width.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pallava.evaluation import statistics
from pallava.evaluation.answers.items import Questions
from pallava.evaluation.class_sets import ClassSet
from pallava.evaluation.encoders.embeddings import EmbeddingCache, count_reasons, embed_images, embed_texts
from pallava.evaluation.encoders.load import Encoder
from pallava.evaluation.statistics import DEFINITIONS, Predictions


def evaluate(
    encoder: Encoder, data: Questions, cache: EmbeddingCache, *, batch_size: int = 64, **bootstrap: int
) -> dict[str, Any]:
    """Score an encoder's predictions for images with classes, as `report` does."""
    assert data.class_set
    labels = data.class_set.labels
    texts = embed_classes(encoder, data.class_set, cache)
    images = embed_images(encoder, [Path(item.image) for item in data.items], cache, batch_size=batch_size)
    true = [labels.index(data.items[number].reference) for number in images.index]
    predictions = predict(images.vectors, texts, true, labels, encoder.logit_scale)
    return report(predictions, data, images.unreadable, **bootstrap)


def report(
    predictions: Predictions, data: Questions, unreadable: Mapping[str, str], **bootstrap: int
) -> dict[str, Any]:
    """Return the result of `score` with the class set and the number of images left out.

    `unreadable` has the reason for each image that could not be read.
    """
    words = data.class_set
    assert words
    return {
        **score(predictions, **bootstrap),
        "left_out": dict(Counter(data.left_out) + Counter(count_reasons(unreadable))),
        "class_set": {
            "name": words.name,
            "source": words.source,
            "names": {label: list(names) for label, names in words.classes},
            "templates": list(words.templates),
        },
    }


def embed_classes(encoder: Encoder, class_set: ClassSet, cache: EmbeddingCache) -> Tensor:
    """Embed each class as the mean of all its sentences: (C, D), unit length."""
    prompts = class_set.prompts()
    vectors = embed_texts(encoder, [text for texts in prompts for text in texts], cache)
    parts = vectors.split([len(texts) for texts in prompts])
    return torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def predict(images: Tensor, classes: Tensor, true: Any, labels: tuple[str, ...], logit_scale: float) -> Predictions:
    """Predict from unit vectors of images (N, D) and classes (C, D), beside the true numbers (N,).

    The score of a class is its log-odds: it orders images as the softmax probability does, but does not reach 1 where
    the model is sure, which would make ties.
    """
    logits = logit_scale * (images.double() @ classes.double().T)  # (N, C)
    numbers = range(len(labels))
    others = [logits[:, [other for other in numbers if other != number]].logsumexp(1) for number in numbers]
    scores = logits - torch.stack(others, dim=1)
    return Predictions(labels, np.asarray(true, dtype=np.int64), logits.argmax(1).numpy(), scores.numpy())


def score(predictions: Predictions, **bootstrap: int) -> dict[str, Any]:
    """Score predictions: metrics with intervals beside the majority control, results by class, the confusion matrix."""
    counts = statistics.confusion(predictions)
    classes = statistics.per_class(counts)
    # The largest class for every image; where classes have scores, the same for all images.
    no_scores = None if predictions.scores is None else np.zeros_like(predictions.scores)
    majority = replace(predictions, predicted=np.full_like(predictions.true, counts.sum(1).argmax()), scores=no_scores)
    return {
        "num_images": len(predictions.true),
        "metrics": _estimates(predictions, **bootstrap),
        "controls": {"majority answer": score_control("majority answer", majority, **bootstrap)},
        "interval": statistics.describe_interval("images", **bootstrap),
        "largest_class": float(counts.sum(1).max() / max(counts.sum(), 1)),
        "num_without_class": int(counts[:, -1].sum()),
        "per_class": {
            label: {name: float(values[number]) for name, values in classes.items()}
            for number, label in enumerate(predictions.labels)
        },
        "per_class_definitions": dict(DEFINITIONS["per_class"]),
        "confusion": {"labels": list(predictions.labels), "counts": counts.tolist()},
    }


def score_control(control: str, predictions: Predictions, **bootstrap: int) -> dict[str, dict[str, Any]]:
    """Score predictions that were made without looking at the right image, by the name of the control."""
    return statistics.as_control(_estimates(predictions, **bootstrap), DEFINITIONS["class_controls"][control])


def _estimates(predictions: Predictions, **bootstrap: int) -> dict[str, dict[str, Any]]:
    estimates = statistics.estimate_all(predictions, **bootstrap)
    count = len(predictions.true)
    return {name: estimate.to_dict(count, DEFINITIONS["metrics"][name]) for name, estimate in estimates.items()}
