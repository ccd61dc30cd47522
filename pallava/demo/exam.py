"""Examinations of the demo: what the small PLIP knows, and the figures of the small PA-LLaVA's evaluation."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pallava.demo import PIXEL_MEAN, PIXEL_STD, TILE_SIZE, Progress
from pallava.demo.micrographs import DENSITIES, GLAND_COUNTS, STAIN_SHARES, Facts, Region
from pallava.demo.questions import ATTRIBUTES, FINE_DETAIL, view_caption
from pallava.evaluation.answers.items import Answer, Item, Questions
from pallava.evaluation.answers.rules import is_exact_match
from pallava.evaluation.class_sets import ClassSet
from pallava.evaluation.encoders.embeddings import EmbeddingCache
from pallava.evaluation.encoders.load import build_open_clip, from_open_clip, load_encoder
from pallava.evaluation.encoders.zero_shot import evaluate
from pallava.io.processes import batches
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.clip import DESCRIPTION, read_description

MAX_NEW_TOKENS = 6


def ask_without_tiles(folder: Path, answered: Sequence[Answer], batch_size: int, progress: Progress) -> list[Answer]:
    """Ask the questions on fine detail again with the overview in place of each tile, so that the detail is gone."""
    model = PALLaVAForConditionalGeneration.from_pretrained(folder).eval()
    processor = PALLaVAProcessor.from_pretrained(folder)
    fine = [each for each in answered if each.item.group == FINE_DETAIL]
    again: list[Answer] = []
    for batch in batches(fine, batch_size):
        inputs = processor([each.item.question for each in batch], [each.item.image for each in batch])
        inputs["pixel_values"] = repeat_overview(inputs["pixel_values"], inputs["tiles_per_image"])
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        again += [replace(each, text=answer) for each, answer in zip(batch, answers, strict=True)]
        progress(f"{len(again)} of {len(fine)} questions without tiles")
    return again


def repeat_overview(pixel_values: torch.Tensor, tiles_per_image: torch.Tensor) -> torch.Tensor:
    """Replace every tile by its image's overview: (sum of 1+N, 3, P, P) to the same shape."""
    stacks = pixel_values.split(tiles_per_image.tolist())
    return torch.cat([stack[:1].expand_as(stack) for stack in stacks])


def summary(result: Mapping[str, Any], without_tiles: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of ``report.json``, seconds aside, from a data set's result in ``results.json``."""
    right = [is_exact_match(each.text, each.item.reference) for each in without_tiles]
    controls = {name: scores["exact_match_closed"] for name, scores in result["controls"].items()}
    groups = {name: round(result["groups"][name]["value"], 4) for name in ATTRIBUTES if name in result["groups"]}
    return {
        "closed_accuracy": round(result["scores"]["exact_match_closed"]["value"], 4),
        "closed_accuracy_shuffled": round(controls["shuffled images"]["value"], 4),
        "closed_accuracy_majority": round(controls["majority answer"]["value"], 4),
        "open_exact_match": round(result["scores"]["exact_match_open"]["value"], 4),
        "attribute_accuracy": groups,
        "fine_detail_accuracy": {
            "with_tiles": groups[FINE_DETAIL],
            "tiles_replaced_by_overview": round(sum(right) / len(right), 4),
        },
        "num_questions": result["num_questions"],
    }


def plip_accuracies(folder: Path, pictures: Sequence[tuple[Path, Facts]], seed: int) -> dict[str, Any]:
    """Classify held-out pictures zero-shot, by stain and by density; return the content of ``plip_report.json``.

    The PLIP of a folder stands beside one of random weights of this seed, and the most frequent class.
    """
    torch.manual_seed(seed)
    model, tokenize = build_open_clip(read_description(str(folder / DESCRIPTION)))
    preprocessing = {"size": TILE_SIZE, "mean": PIXEL_MEAN, "std": PIXEL_STD, "resize_mode": "squash"}
    encoders = {"": load_encoder(str(folder)), "_untrained": from_open_clip(model, tokenize, preprocessing)}
    report: dict[str, Any] = {"num_pictures": len(pictures)}
    for suffix, encoder in encoders.items():
        with tempfile.TemporaryDirectory() as scratch:
            cache = EmbeddingCache(Path(scratch), encoder)
            for attribute in ("stain", "density"):
                items = [Item("", str(path), "", getattr(facts, attribute), "class") for path, facts in pictures]
                result = evaluate(encoder, Questions(items, class_set=_class_set(attribute)), cache)
                report[f"{attribute}_accuracy{suffix}"] = round(result["metrics"]["accuracy"]["value"], 4)
                report[f"{attribute}_largest_class"] = round(result["largest_class"], 4)
    return report


def _class_set(attribute: str) -> ClassSet:
    """Return the classes of an attribute, each as every caption of an overview that names it."""
    captions: dict[str, list[str]] = {}
    for values in product(STAIN_SHARES, DENSITIES, GLAND_COUNTS, (True, False), (True, False)):
        facts = Facts(*values, mitosis=False)
        kinds = ["gland"] * facts.glands + ["necrosis"] * facts.necrosis + ["inflammation"] * facts.inflammation
        text = view_caption(facts, [Region(kind, 0, 0, 1) for kind in kinds], overview=True)
        captions.setdefault(getattr(facts, attribute), []).append(text)
    classes = tuple((label, tuple(texts)) for label, texts in captions.items())
    return ClassSet(attribute, classes, ("{}",), "captions of the synthetic micrographs")
