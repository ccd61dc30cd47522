"""Results as JSON, as tables for the terminal, and as one page with the confusion matrices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.report.page import card, grid, heading, note, page
from pallava.report.plots import confusion_plot
from pallava.report.tables import percent, table

_NO_CLASS = "no class"
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
CAUTION = (
    "Images are drawn one by one for the intervals: where several come from one patient or slide, as patches do, "
    "the true intervals are wider."
)


@dataclass(frozen=True)
class Table:
    """A table before it is laid out."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report: of zero-shot one over all data sets, then of each its classes and its controls."""
    if report["task"] == "retrieval":
        return [_recalls(name, result) for name, result in report["data"].items()]
    shown = [_overview(report)]
    for name, result in report["data"].items():
        shown += [_classes(name, result), _controls(name, result)]
    return shown


def as_text(shown: Table) -> str:
    """A table for the terminal."""
    lines = [shown.header, *shown.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown.header))]
    text = [
        "  ".join(
            cell.ljust(w) if not column else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([shown.caption, *(line.rstrip() for line in text)])


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes ``results.json`` and ``index.html``, of zero-shot also the confusion matrices as SVG files.

    Raises:
        PallavaError: The folder cannot be written.
    """
    write_files(folder, {"index.html": _page(report), **confusion_files(report), "results.json": as_json(report)})


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes texts, each whole or not at all; the results should be the last: where they are, the rest is there.

    Raises:
        PallavaError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            unfinished = folder / f".{name}.unfinished"
            unfinished.write_text(text, encoding="utf-8", errors="replace")
            unfinished.replace(folder / name)
    except OSError as error:
        raise PallavaError(f"cannot write the results to {folder}: {error.strerror}") from None


def as_json(report: Mapping[str, Any]) -> str:
    """The results as ``results.json`` has them; null where a number is not defined."""
    return json.dumps(_without_nan(report), indent=2, allow_nan=False) + "\n"


def confusion_files(report: Mapping[str, Any]) -> dict[str, str]:
    """The confusion matrices of a zero-shot report as SVG files; nothing of other tasks."""
    if report["task"] != "zero-shot":
        return {}
    return {f"confusion_{name}.svg": confusion_picture(result) for name, result in report["data"].items()}


def confusion_picture(result: Mapping[str, Any]) -> str:
    """The confusion matrix of one data set as SVG; answers without a class have a column if there are any."""
    labels, counts = result["confusion"]["labels"], result["confusion"]["counts"]
    if result["num_without_class"]:
        return confusion_plot(labels, [*labels, _NO_CLASS], counts)
    return confusion_plot(labels, labels, [row[:-1] for row in counts])


def _page(report: Mapping[str, Any]) -> str:
    parts = [heading(f"{report['task'].capitalize()}: {report['model']}", _summary(report), level=1), note(CAUTION)]
    return page(f"{report['task']} of {report['model']}", [*parts, *sections(report), *definitions(report)])


def sections(report: Mapping[str, Any]) -> list[str]:
    """What a page says of the data sets, as HTML."""
    parts = [as_html(_overview(report))] if report["task"] == "zero-shot" else []
    for name, result in report["data"].items():
        parts.append(heading(name, _left_out(result)))
        if report["task"] == "zero-shot":
            classes = as_html(_classes(name, result))
            parts.append(
                grid([card("Confusion matrix", confusion_picture(result)), card("Classes", classes)], is_wide=True)
            )
            parts += [as_html(_controls(name, result)), _words(result["class_set"], report["kind"])]
        else:
            parts.append(as_html(_recalls(name, result)))
    return parts


def definitions(report: Mapping[str, Any]) -> list[str]:
    """What each score is, and each control by the example of its first score, as HTML."""
    found: dict[str, str] = {}
    for result in report["data"].values():
        scores = result.get("scores") or result.get("metrics", {})
        found |= {name: estimate["definition"] for name, estimate in scores.items()}
        found |= result.get("per_class_definitions", {})
        for control, estimates in result.get("controls", {}).items():
            found.setdefault(control, next(iter(estimates.values()))["definition"])
        if result.get("consistency"):
            found["same answer"] = result["consistency"]["same"]["all"]["definition"]
    if not found:
        return []
    return [heading("Definitions"), table(["score", "definition"], list(found.items()), is_text=True)]


def _summary(report: Mapping[str, Any]) -> str:
    result = next(iter(report["data"].values()))
    return f"Values with their intervals ({result['interval']})."


def _left_out(result: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in result["left_out"].items())
    return f"{result['num_images']} images" + (f"; left out: {reasons}" if reasons else "; none left out")


def _overview(report: Mapping[str, Any]) -> Table:
    """A row a data set; of a model that answers, how many answers name no class."""
    data, is_asked = report["data"], report["kind"] == "pallava"
    names = list(dict.fromkeys(metric for result in data.values() for metric in result["metrics"]))
    rows = [
        (
            name,
            str(result["num_images"]),
            *(as_estimate(result["metrics"][metric]) if metric in result["metrics"] else "–" for metric in names),
            percent(result["largest_class"]),
            *([str(result["num_without_class"])] if is_asked else []),
        )
        for name, result in data.items()
    ]
    header = ("data", "images", *(name.replace("_", " ") for name in names), "largest class")
    return Table("zero-shot classification", (*header, _NO_CLASS) if is_asked else header, tuple(rows))


def _controls(name: str, result: Mapping[str, Any]) -> Table:
    return beside_controls(f"{name}: beside its controls", "images", result["metrics"], result["controls"])


def beside_controls(
    title: str, counted: str, scores: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]
) -> Table:
    """A row a score, its controls beside it.

    Args:
        title: Of the table.
        counted: What each score's ``count`` counts.
        scores: By name.
        controls: By the control's name the same scores, or some of them.
    """
    rows = [
        (
            name,
            str(estimate["count"]),
            as_estimate(estimate),
            *(as_estimate(control[name]) if name in control else "" for control in controls.values()),
        )
        for name, estimate in scores.items()
    ]
    return Table(title, ("score", counted, "model", *controls), tuple(rows))


def _classes(name: str, result: Mapping[str, Any]) -> Table:
    rows = [
        (label, *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:.0f}")
        for label, row in result["per_class"].items()
    ]
    return Table(f"{name}: classes", ("class", "precision", "recall", "F1", "images"), tuple(rows))


def _recalls(name: str, result: Mapping[str, Any]) -> Table:
    from pallava.evaluation.encoders.retrieval import RANKS  # loads torch, which other reports do without

    rows = [
        (
            f"{shown} @{rank}",
            as_estimate(result[key][f"recall_at_{rank}"]),
            percent(result[key][f"recall_at_{rank}"]["chance"]),
        )
        for key, shown in _DIRECTIONS.items()
        for rank in RANKS
    ]
    size = f"{result['num_images']} images, {result['num_captions']} captions"
    return Table(f"{name}: {size}", ("recall", "value", "by chance"), tuple(rows))


def _words(class_set: Mapping[str, Any], kind: str) -> str:
    shown = table(["class", "names"], [[label, "; ".join(names)] for label, names in class_set["names"].items()])
    if kind != "pallava":  # which is asked, and compares no sentences
        shown += table(["templates"], [[text] for text in class_set["templates"]])
    return card("Words", shown)


def as_html(shown: Table) -> str:
    """A table for a page."""
    return table(shown.header, shown.rows, caption=shown.caption)


def as_estimate(estimate: Mapping[str, Any]) -> str:
    """A value with its interval, in percent."""
    if math.isnan(estimate["value"]):
        return "–"
    return f"{percent(estimate['value'])} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _without_nan(value: Any) -> Any:
    """The same with null where a number is not defined, since JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
