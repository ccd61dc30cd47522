"""Results of an evaluation as JSON, as tables, and as one page with the confusion matrices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.files import write_text
from pallava.report.page import card, grid, heading, note, page
from pallava.report.plots import confusion_plot
from pallava.report.table import Table, estimate, percent

_NO_CLASS = "no class"
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
CAUTION = (
    "Images are drawn one by one for the intervals: where several come from one patient or slide, as patches do, "
    "the true intervals are wider."
)


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report; for zero-shot one over all data sets, then classes and controls of each."""
    if report["task"] == "retrieval":
        return [_recalls(name, result) for name, result in report["data"].items()]
    shown = [_overview(report)]
    for name, result in report["data"].items():
        shown += [_classes(name, result), _controls(name, result)]
    return shown


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``results.json`` and ``index.html``, for zero-shot also the confusion matrices as SVG files.

    Raises:
        PallavaError: The folder cannot be written.
    """
    write_files(folder, {"index.html": _page(report), **confusion_files(report), "results.json": as_json(report)})


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts whole, in their order; with the results last, all else is complete when they exist.

    Raises:
        PallavaError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text, errors="replace")
    except OSError as error:
        raise PallavaError(f"cannot write the results to '{folder}': {error.strerror}") from None


def as_json(report: Mapping[str, Any]) -> str:
    """Return the content of ``results.json``; numbers that are not defined are null."""
    return json.dumps(_without_nan(report), indent=2, allow_nan=False) + "\n"


def confusion_files(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the confusion matrices of a zero-shot report as SVG files, and nothing for other tasks."""
    if report["task"] != "zero-shot":
        return {}
    return {f"confusion_{name}.svg": _confusion_plot(result) for name, result in report["data"].items()}


def sections(report: Mapping[str, Any]) -> list[str]:
    """Return the blocks of a page about the data sets."""
    if report["task"] == "retrieval":
        return [
            block
            for name, result in report["data"].items()
            for block in (heading(name, _left_out(result)), _recalls(name, result).to_html())
        ]
    parts = [_overview(report).to_html()]
    for name, result in report["data"].items():
        matrix = card("Confusion matrix", _confusion_plot(result))
        parts += [
            heading(name, _left_out(result)),
            grid([matrix, card("Classes", _classes(name, result).to_html())], is_wide=True),
            _controls(name, result).to_html(),
            _words(result["class_set"], report["kind"]),
        ]
    return parts


def definitions(report: Mapping[str, Any]) -> list[str]:
    """Return the blocks of a page that define each score, and each control by its first score."""
    found: dict[str, str] = {}
    for result in report["data"].values():
        scores = result.get("scores") or result.get("metrics", {})
        found |= {name: each["definition"] for name, each in scores.items()}
        found |= result.get("per_class_definitions", {})
        for control, estimates in result.get("controls", {}).items():
            found.setdefault(control, next(iter(estimates.values()))["definition"])
        if result.get("consistency"):
            found["same answer"] = result["consistency"]["same"]["all"]["definition"]
    if not found:
        return []
    return [heading("Definitions"), Table("", ["score", "definition"], list(found.items()), is_text=True).to_html()]


def beside_controls(
    title: str, counted: str, scores: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Return a table with a row for each score and its controls beside it.

    Args:
        title: Title of the table.
        counted: What each score's ``count`` counts.
        scores: Estimates by name.
        controls: By the control's name the same scores, or some of them.
    """
    rows = [
        [
            name,
            str(each["count"]),
            as_estimate(each),
            *(as_estimate(control[name]) if name in control else "" for control in controls.values()),
        ]
        for name, each in scores.items()
    ]
    return Table(title, ["score", counted, "model", *controls], rows)


def as_estimate(values: Mapping[str, Any]) -> str:
    """Return a value with its interval in percent."""
    return estimate(values["value"], values["low"], values["high"])


def _page(report: Mapping[str, Any]) -> str:
    title, first = f"{report['task']}: {report['model']}", next(iter(report["data"].values()))
    top = heading(title[0].upper() + title[1:], f"Values with their intervals ({first['interval']}).", level=1)
    return page(title, [top, note(CAUTION), *sections(report), *definitions(report)])


def _confusion_plot(result: Mapping[str, Any]) -> str:
    """Draw the confusion matrix of one data set; answers without a class, if any, have a column."""
    labels, counts = result["confusion"]["labels"], result["confusion"]["counts"]
    if result["num_without_class"]:
        return confusion_plot(labels, [*labels, _NO_CLASS], counts)
    return confusion_plot(labels, labels, [row[:-1] for row in counts])


def _left_out(result: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in result["left_out"].items())
    return f"{result['num_images']} images" + (f"; left out: {reasons}" if reasons else "; none left out")


def _overview(report: Mapping[str, Any]) -> Table:
    """Make a row for each data set; for a model that answers, with the number of answers without a class."""
    data, is_answers = report["data"], report["kind"] == "pallava"
    names = list(dict.fromkeys(metric for result in data.values() for metric in result["metrics"]))
    rows = [
        [
            name,
            str(result["num_images"]),
            *(as_estimate(result["metrics"][metric]) if metric in result["metrics"] else "–" for metric in names),
            percent(result["largest_class"]),
            *([str(result["num_without_class"])] if is_answers else []),
        ]
        for name, result in data.items()
    ]
    header = ["data", "images", *(name.replace("_", " ") for name in names), "largest class"]
    return Table("zero-shot classification", header + [_NO_CLASS] * is_answers, rows)


def _controls(name: str, result: Mapping[str, Any]) -> Table:
    return beside_controls(f"{name}: beside its controls", "images", result["metrics"], result["controls"])


def _classes(name: str, result: Mapping[str, Any]) -> Table:
    rows = [
        [label, *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:.0f}"]
        for label, row in result["per_class"].items()
    ]
    return Table(f"{name}: classes", ["class", "precision", "recall", "F1", "images"], rows)


def _recalls(name: str, result: Mapping[str, Any]) -> Table:
    rows = [
        [f"{direction} @{score.removeprefix('recall_at_')}", as_estimate(values), percent(values["chance"])]
        for key, direction in _DIRECTIONS.items()
        for score, values in result[key].items()
    ]
    size = f"{result['num_images']} images, {result['num_captions']} captions"
    return Table(f"{name}: {size}", ["recall", "value", "by chance"], rows)


def _words(class_set: Mapping[str, Any], kind: str) -> str:
    names = [[label, "; ".join(names)] for label, names in class_set["names"].items()]
    shown = Table("", ["class", "names"], names).to_html()
    if kind != "pallava":  # which is asked, and compares no sentences
        shown += Table("", ["templates"], [[text] for text in class_set["templates"]]).to_html()
    return card("Words", shown)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
