"""The demo's page: the trainings, the scores and some answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pallava.demo import PIXEL_MEAN, PIXEL_STD, TILE_SIZE
from pallava.demo.questions import FINE_DETAIL
from pallava.demo.stages import plip_losses, read_losses
from pallava.evaluation.answers.items import Answer
from pallava.evaluation.answers.rules import is_exact_match
from pallava.images import open_image
from pallava.io.files import write_text
from pallava.report.page import render_page
from pallava.report.plots import line_plot
from pallava.tiling import TileSpec, choose_canvas, denormalize, make_tiles

_SPEC = TileSpec(TILE_SIZE, PIXEL_MEAN, PIXEL_STD)
_NUM_SAMPLES = _NUM_ANSWERS = _NUM_DETAILS = 6


def write_page(
    folder: Path,
    report: dict[str, Any],
    answered: Sequence[Answer],
    without_tiles: Sequence[Answer],
    most_read: Mapping[str, int],
) -> None:
    """Write ``index.html`` into the demo's folder.

    `without_tiles` are the answers on the fine detail with the overview in the place of the tiles, `most_read` the
    numbers of the tiles that the connector read most, by the name of the picture.
    """
    text = render_page(
        "demo/page.html.jinja",
        report=report,
        fine_detail=FINE_DETAIL,
        num_questions=Counter(name for each in answered for name in (each.item.group, each.item.kind)),
        plip=json.loads((folder / "plip_report.json").read_text(encoding="utf-8")),
        details=_details(folder, answered, without_tiles, most_read),
        samples=_samples(answered),
        curves=_curves(folder),
        real_pictures=_real_pictures(folder),
    )
    write_text(folder / "index.html", text)


def _samples(answered: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Yield the pictures with the most questions as the encoder sees them, each with some of its answers."""
    by_picture: dict[str, list[Answer]] = {}
    for each in answered:
        by_picture.setdefault(each.item.image, []).append(each)
    for path in sorted(by_picture, key=lambda path: (-len(by_picture[path]), path))[:_NUM_SAMPLES]:
        image = open_image(path)
        overview, *tiles = _tiles(image)
        answers = [(each, is_exact_match(each.text, each.item.reference)) for each in by_picture[path][:_NUM_ANSWERS]]
        yield {
            "name": Path(path).stem,
            "image": image,
            "overview": overview,
            "tiles": tiles,
            "columns": choose_canvas(image.size, TILE_SIZE)[0] // TILE_SIZE,
            "answers": answers,
        }


def _details(
    folder: Path, answered: Sequence[Answer], without_tiles: Sequence[Answer], most_read: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Yield the first pictures that were asked about the fine detail, one by one with it and without it.

    Each has a figure cut out of it, the overview, the tile that was read most, and both answers to a question.
    """
    again = {each.item.id: each for each in without_tiles}
    records = {each["name"]: each for each in json.loads((folder / "data" / "test.json").read_text(encoding="utf-8"))}
    seen: Counter[bool] = Counter()
    shown: set[str] = set()
    for each in sorted(answered, key=lambda answer: answer.item.id):
        name = Path(each.item.image).name
        if each.item.id not in again or name in shown:
            continue
        has_detail = records[name]["facts"][FINE_DETAIL]
        if seen[has_detail] == _NUM_DETAILS // 2:
            continue
        seen[has_detail] += 1
        shown.add(name)
        image = open_image(each.item.image)
        overview, *tiles = _tiles(image)
        figure = next(region for region in records[name]["regions"] if region["kind"] == "figure")
        reach = round(1.5 * figure["radius"])
        left, top = (
            round(min(max(figure[axis] - reach, 0), side - 2 * reach))
            for axis, side in zip(("x", "y"), image.size, strict=True)
        )
        answers = [
            (given.text or "(no answer)", is_exact_match(given.text, given.item.reference))
            for given in (each, again[each.item.id])
        ]
        yield {
            "name": Path(name).stem,
            "image": image,
            "figure": image.crop((left, top, left + 2 * reach, top + 2 * reach)),
            "has_detail": has_detail,
            "overview": overview,
            "tile": tiles[most_read[name]],
            "number": most_read[name] + 1,
            "question": each.item.question,
            "reference": each.item.reference,
            "answers": answers,
        }


def _tiles(image: Image.Image) -> list[Image.Image]:
    """Return an image's overview and tiles as the encoder sees them."""
    stack = denormalize(make_tiles(image, _SPEC), _SPEC)  # (1+N, 3, P, P)
    return [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in stack]


def _curves(folder: Path) -> list[tuple[str, str]]:
    curves = (
        ("PLIP: contrastive loss", "view", plip_losses(folder / "logs" / "plip.log")),
        ("Word alignment: loss", "step", read_losses(folder / "words")),
        ("Stage 1, domain alignment: loss", "step", read_losses(folder / "stage1")),
        ("Stage 2, instruction tuning: loss", "step", read_losses(folder / "stage2")),
    )
    return [
        (title, line_plot(points, x_label=unit, y_label="loss", smooth=max(1, len(points) // 25)))
        for title, unit, points in curves
    ]


def _real_pictures(folder: Path) -> list[tuple[str, str, Image.Image]]:
    """Return stain, caption and picture of one record for each stain."""
    records = json.loads((folder / "data" / "train.json").read_text(encoding="utf-8"))
    by_stain = {record["stain"]: record for record in records if "stain" in record}
    images = folder / "data" / "images"
    return [(stain, record["caption"], open_image(images / record["name"])) for stain, record in by_stain.items()]
