"""What `pallava evaluate` found on the held-out questions; those on fine detail are put once more without tiles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pallava.demo.questions import ATTRIBUTES, FINE_DETAIL
from pallava.evaluation.answers.items import Answered
from pallava.evaluation.answers.rules import is_exact_match
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor

MAX_NEW_TOKENS = 6


def ask_without_tiles(
    folder: Path,
    answered: Sequence[Answered],
    *,
    batch_size: int,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Answered]:
    """Asks the questions on fine detail again with the overview in the place of each tile, so that it is gone.

    Args:
        folder: Of the model.
        answered: All questions.
        batch_size: Questions at once.
        progress: Gets a line now and then.
    """
    model = PALLaVAForConditionalGeneration.from_pretrained(folder).eval()
    processor = PALLaVAProcessor.from_pretrained(folder)
    fine = [each for each in answered if each.item.group == FINE_DETAIL]
    again: list[Answered] = []
    for start in range(0, len(fine), batch_size):
        batch = fine[start : start + batch_size]
        inputs = processor([each.item.question for each in batch], [each.item.image for each in batch])
        inputs["pixel_values"] = repeat_overview(inputs["pixel_values"], inputs["tiles_per_image"])
        with torch.inference_mode():
            answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS))
        again += [replace(each, answer=answer) for each, answer in zip(batch, answers, strict=True)]
        progress(f"{len(again)} of {len(fine)} questions without tiles")
    return again


def repeat_overview(pixel_values: torch.Tensor, tiles_per_image: torch.Tensor) -> torch.Tensor:
    """Replaces every tile by its image's overview: (sum of 1+N, 3, P, P) to the same shape."""
    stacks = pixel_values.split(tiles_per_image.tolist())
    return torch.cat([stack[:1].expand_as(stack) for stack in stacks])


def summary(result: Mapping[str, Any], without_tiles: Sequence[Answered]) -> dict[str, Any]:
    """The figures of ``report.json``, seconds aside.

    Args:
        result: Of one data set in the ``results.json`` of `pallava evaluate`.
        without_tiles: What `ask_without_tiles` gave.
    """
    right = [is_exact_match(each.answer, each.item.reference) for each in without_tiles]
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
