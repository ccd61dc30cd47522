"""The demo's page: the trainings, the scores and some answers."""

import json
from collections.abc import Sequence
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
from pallava.report import page as html
from pallava.report.plots import line_plot
from pallava.report.table import Table, percent
from pallava.tiling import TileSpec, choose_canvas, denormalize, make_tiles

_SPEC = TileSpec(TILE_SIZE, PIXEL_MEAN, PIXEL_STD)
_NUM_SAMPLES = 6
_CAUTION = (
    "All questions are about synthetic images: drawings with known content, not tissue. The model is a toy that "
    "shows that the whole chain works. For research only; not for diagnosis, and no measure of any real use."
)


def write_page(folder: Path, report: dict[str, Any], answered: Sequence[Answer]) -> None:
    """Write ``index.html`` into the demo's folder."""
    parts = [
        html.heading(
            "PA-LLaVA, small",
            "An encoder, a connector and LoRA on SmolLM2-135M-Instruct, trained on this computer in "
            f"{report['seconds']['total'] / 60:.0f} minutes: contrast, domain alignment, instruction tuning.",
            level=1,
        ),
        html.note(_CAUTION),
        _key_figures(report),
        html.heading("What it was asked", "Held-out synthetic images, and wordings that training never used."),
        _result_table(report, answered),
        html.heading("What the encoder knows by itself", "Zero-shot: the nearest caption's class, on held-out images."),
        _plip_table(folder),
        html.heading("Samples", "Each image, what the encoder sees of it, and what the model answers."),
        html.grid(_samples(answered), is_wide=True),
        html.heading("How the trainings went"),
        html.grid(_curves(folder)),
        html.heading("Real pictures in the training", "Captions say what can be measured on them, no more."),
        html.grid(_real_pictures(folder)),
        html.heading("Time"),
        Table("", ["Step", "Seconds"], [[name, f"{value:.0f}"] for name, value in report["seconds"].items()]).to_html(),
        html.footer(_CAUTION),
    ]
    write_text(folder / "index.html", html.page("PA-LLaVA, small: results", parts))


def _key_figures(report: dict[str, Any]) -> str:
    figures = {
        "closed_accuracy": "of closed questions right",
        "closed_accuracy_shuffled": "of them with shuffled images",
        "open_exact_match": "of open questions exactly right",
        "with_tiles": "on the fine detail, with tiles",
        "tiles_replaced_by_overview": "on it, with the overview in their place",
    }
    values = report | report["fine_detail_accuracy"]
    return html.figures([(percent(values[name]), text) for name, text in figures.items()])


def _result_table(report: dict[str, Any], answered: Sequence[Answer]) -> str:
    rows = []
    for name, value in report["attribute_accuracy"].items():
        title = name + " (the fine detail)" * (name == FINE_DETAIL)
        rows.append([title, str(sum(each.item.group == name for each in answered)), percent(value)])
    closed = sum(each.item.kind == "closed" for each in answered)
    rows += [
        ["all closed", str(closed), percent(report["closed_accuracy"])],
        ["all closed, shuffled images", str(closed), percent(report["closed_accuracy_shuffled"])],
        ["all closed, most frequent answer", str(closed), percent(report["closed_accuracy_majority"])],
        ["all open", str(len(answered) - closed), percent(report["open_exact_match"])],
    ]
    return Table("", ["Attribute", "Questions", "Right"], rows).to_html()


def _plip_table(folder: Path) -> str:
    report = json.loads((folder / "plip_report.json").read_text())
    rows = []
    for attribute in ("stain", "density"):
        keys = (f"{attribute}_{key}" for key in ("accuracy", "accuracy_untrained", "largest_class"))
        rows.append([attribute, str(report["num_pictures"]), *(percent(report[key]) for key in keys)])
    return Table("", ["Attribute", "Images", "Trained PLIP", "Untrained", "Largest class"], rows).to_html()


def _samples(answered: Sequence[Answer]) -> list[str]:
    """Make cards of the pictures with the most questions."""
    by_picture: dict[str, list[html.ShownAnswer]] = {}
    for each in answered:
        is_right = is_exact_match(each.text, each.item.reference)
        shown = html.ShownAnswer(each.item.question, each.text, each.item.reference, is_right)
        by_picture.setdefault(each.item.image, []).append(shown)
    chosen = sorted(by_picture, key=lambda path: (-len(by_picture[path]), path))[:_NUM_SAMPLES]
    return [
        html.card(f"Synthetic micrograph {Path(path).stem}", _tiled(Path(path)) + html.answers(by_picture[path][:6]))
        for path in chosen
    ]


def _tiled(path: Path) -> str:
    image = open_image(path)
    stack = denormalize(make_tiles(image, _SPEC), _SPEC)  # (1+N, 3, P, P)
    squares = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in stack]
    columns = choose_canvas(image.size, TILE_SIZE)[0] // TILE_SIZE
    return html.picture_with_tiles(image, squares[0], squares[1:], columns)


def _curves(folder: Path) -> list[str]:
    curves = (
        ("PLIP: contrastive loss", "view", plip_losses(folder / "logs" / "plip.log")),
        ("Stage 1, domain alignment: loss", "step", read_losses(folder / "stage1")),
        ("Stage 2, instruction tuning: loss", "step", read_losses(folder / "stage2")),
    )
    return [
        html.card(title, line_plot({"loss": points}, x_label=unit, y_label="loss", smooth=max(1, len(points) // 25)))
        for title, unit, points in curves
    ]


def _real_pictures(folder: Path) -> list[str]:
    records = json.loads((folder / "data" / "train.json").read_text())
    by_stain = {record["stain"]: record for record in records if "stain" in record}
    return [
        html.card(
            record["caption"],
            html.picture(open_image(folder / "data" / "images" / record["name"]), width=240, caption=stain),
        )
        for stain, record in by_stain.items()
    ]
