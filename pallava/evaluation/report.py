"""Results of an evaluation as JSON, as tables, and as one page with confusion matrices and some of the questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import AS_IS, Answer, AnswerSet, Questions
from pallava.images import ImageError, open_image
from pallava.io.files import write_text
from pallava.report.page import ShownAnswer, card, grid, heading, note, page, picture
from pallava.report.page import answers as answer_list
from pallava.report.plots import confusion_plot
from pallava.report.table import Table, estimate, percent

_NO_CLASS = "no class"
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
_CAUTION = (
    "Images are drawn one by one for the intervals: where several come from one patient or slide, as patches do, "
    "the true intervals are wider."
)
_NUM_SAMPLES = 12
_THUMBNAIL = 320  # pixels
_SHOWN_WIDTH = 240

_Rule = Callable[[Answer, Questions], bool]


def report_text(report: Mapping[str, Any]) -> str:
    """Return the tables of a report and the counts of what was left out, for printing."""
    left_out = "left out " if report["kind"] == "encoder" else ""
    lines = [f"{name}: {left_out}{count} x {reason}" for name, count, reason in _reasons(report)]
    shown = [*_class_tables(report), *_tables(report)]
    return "\n".join(["\n\n".join(each.to_text() for each in shown), *lines])


def write_report(
    report: Mapping[str, Any],
    folder: Path,
    answers: Mapping[str, AnswerSet] | None = None,
    is_right: _Rule | None = None,
) -> None:
    """Write ``results.json``, ``index.html``, confusion matrices as SVG files, and the predictions.

    An encoder has no `answers`, which have the names of the data; some tasks have no right ones.

    Raises:
        PallavaError: The folder cannot be written.
    """
    answers = answers or {}
    files = {}
    for view in dict.fromkeys(view for each in answers.values() for view in each.by_view):
        records = (answer.as_record() for each in answers.values() for answer in each.by_view.get(view, ()))
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        files[f"predictions{'_' * bool(view)}{view}.jsonl"] = "".join(lines)
    files["index.html"] = _page(report, answers, is_right)
    if report["task"] == "zero-shot":
        files |= {f"confusion_{name}.svg": _confusion_plot(result) for name, result in report["data"].items()}
    write_files(folder, {**files, "results.json": as_json(report)})


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


def as_estimate(values: Mapping[str, Any]) -> str:
    """Return a value with its interval in percent."""
    return estimate(values["value"], values["low"], values["high"])


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _reasons(report: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    return [
        (name, count, reason)
        for name, result in report["data"].items()
        for reason, count in {**result["left_out"], **result.get("problems", {})}.items()
    ]


def _class_tables(report: Mapping[str, Any]) -> list[Table]:
    """Zero-shot: one over all data sets, then classes and controls of each."""
    if report["task"] != "zero-shot":
        return []
    shown = [_overview(report)]
    for name, result in report["data"].items():
        shown += [_classes(name, result), _scores(name, result)]
    return shown


def _tables(report: Mapping[str, Any]) -> list[Table]:
    """All but those of `_class_tables`: scores beside their controls, then groups and consistency, if any."""
    shown = []
    for name, result in report["data"].items():
        if report["task"] != "zero-shot":
            shown.append((_recalls if report["task"] == "retrieval" else _scores)(name, result))
        if result.get("groups"):
            rows = [[group, str(each["count"]), as_estimate(each)] for group, each in result["groups"].items()]
            shown.append(Table(f"{name}: right answers in each group", ["group", "questions", "right"], rows))
        if result.get("consistency"):
            shown.append(_consistency(name, result["consistency"]))
    return shown


def _page(report: Mapping[str, Any], answers: Mapping[str, AnswerSet], is_right: _Rule | None) -> str:
    title, first = f"{report['task']} of {report['model']}", next(iter(report["data"].values()))
    parts = [heading(title, f"Values with their intervals ({first['interval']}).", level=1), note(_CAUTION)]
    if report["task"] == "zero-shot":
        parts += _class_blocks(report)
    if report["kind"] == "encoder":
        for (name, result), table in zip(report["data"].items(), _tables(report), strict=False):
            parts += [heading(name, _left_out(result)), table.to_html()]
        return page(title, [*parts, *_definitions(report)])
    parts += [note(f"{name}: {count} x {reason}") for name, count, reason in _reasons(report)]
    parts += [each.to_html() for each in _tables(report)]
    parts.append(heading("Samples", "Spread evenly over the data, not chosen."))
    pairs = [(answer, each.questions) for each in answers.values() for answer in each.by_view[AS_IS]]
    count = min(_NUM_SAMPLES, len(pairs))
    evenly = [pairs[number * len(pairs) // count] for number in range(count)]
    parts.append(grid([_sample(answer, questions, is_right) for answer, questions in evenly]))
    settings = [[name.replace("_", " "), str(value)] for name, value in report["settings"].items()]
    parts += [*_definitions(report), heading("Settings")]
    return page(title, [*parts, Table("", ["setting", "value"], settings, is_text=True).to_html()])


def _class_blocks(report: Mapping[str, Any]) -> list[str]:
    parts = [_overview(report).to_html()]
    for name, result in report["data"].items():
        matrix = card("Confusion matrix", _confusion_plot(result))
        parts += [
            heading(name, _left_out(result)),
            grid([matrix, card("Classes", _classes(name, result).to_html())], is_wide=True),
            _scores(name, result).to_html(),
            _words(result["class_set"], report["kind"]),
        ]
    return parts


def _definitions(report: Mapping[str, Any]) -> list[str]:
    """Define each score, and each control by its first score."""
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


def _scores(name: str, result: Mapping[str, Any]) -> Table:
    """Make a row for each score, with its controls, which may lack some scores, beside it."""
    title, counted, scores = f"{name}: beside its controls", "images", result.get("metrics")
    if scores is None:
        counted, scores = "questions", result["scores"]
        title = f"{name}: {result['num_questions']} questions, {result['num_unanswered']} without an answer"
        if result.get("num_unread_choices"):
            title += f", {result['num_unread_choices']} choices that cannot be read"
    columns = [scores, *result["controls"].values()]
    rows = [
        [score, str(each["count"]), *(as_estimate(column[score]) if score in column else "" for column in columns)]
        for score, each in scores.items()
    ]
    return Table(title, ["score", counted, "model", *result["controls"]], rows)


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


def _consistency(name: str, result: Mapping[str, Any]) -> Table:
    same, right = result["same"], result.get("accuracy", {})
    rows = []
    for view in dict.fromkeys([*right, *same]):
        count = str((same.get(view) or right[view])["count"])
        estimates = [as_estimate(column[view]) if view in column else "" for column in (same, right)]
        rows.append([view.replace("_", " "), count, *estimates, str(result["num_empty"].get(view, ""))])
    title = f"{name}: consistency"
    if result["num_left_out"]:
        title += f"; questions left out whose image cannot be opened: {result['num_left_out']}"
    return Table(title, ["image", "questions", "same answer", "right", "empty answers"], rows)


def _words(class_set: Mapping[str, Any], kind: str) -> str:
    rows = [[label, "; ".join(names)] for label, names in class_set["names"].items()]
    shown = Table("", ["class", "names"], rows).to_html()
    if kind != "pallava":  # which is asked, and compares no sentences
        shown += Table("", ["templates"], [[text] for text in class_set["templates"]]).to_html()
    return card("Words", shown)


def _sample(answer: Answer, questions: Questions, is_right: _Rule | None) -> str:
    item, text, shown = answer.item, answer.text or "(no answer)", ""
    if item.image:
        try:
            image = open_image(item.image)
            image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
            shown = picture(image, width=min(image.width, _SHOWN_WIDTH))
        except ImageError as error:
            shown = note(str(error))
    if is_right is None:
        shown += Table("", ["", ""], [["model", text], ["reference", item.reference]], is_text=True).to_html()
    else:
        shown += answer_list([ShownAnswer(item.kind, text, item.reference, is_right(answer, questions))])
    return card(item.question, shown)
