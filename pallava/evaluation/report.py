"""Results of an evaluation as JSON, as tables, and as one page with confusion matrices and some of the questions."""

import json
from collections.abc import Callable, Mapping
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from PIL import Image

from pallava.evaluation.answers.confidence import ALL
from pallava.evaluation.answers.items import Answer, AnswerSet, Questions
from pallava.evaluation.statistics import DEFINITIONS
from pallava.images import ImageError, open_image
from pallava.io.files import report_os_errors, write_text
from pallava.report.page import render_page
from pallava.report.plots import confidence_plot, confusion_plot
from pallava.report.table import Table, estimate, percent

_NO_CLASS = "no class"
_NUM_SAMPLES = 12
_THUMBNAIL = 320  # pixels

_Report = Mapping[str, Any]  # the whole, or the results on one data set
_Rule = Callable[[Answer, Questions], bool]


def report_text(report: _Report) -> str:
    """Return the tables of a report and the counts of what was left out, for printing."""
    left_out = "left out " if report["kind"] == "encoder" else ""
    lines = [f"{name}: {left_out}{count} x {reason}" for name, count, reason in _reasons(report)]
    shown = [*_overview(report), *(each for tables in _tables(report).values() for each in tables.values())]
    return "\n".join(["\n\n".join(each.to_text() for each in shown), *lines])


def write_report(
    report: _Report, folder: Path, answers: Mapping[str, AnswerSet] | None = None, is_right: _Rule | None = None
) -> None:
    """Write ``results.json``, ``index.html``, its plots as SVG files, and the predictions.

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
    makers = {"confusion": _confusion_plot, "confidence": _confidence_plot}
    plots = {
        (key, name): make(result)
        for key, make in makers.items()
        for name, result in report["data"].items()
        if key in result
    }
    files["index.html"] = _page(report, plots, answers, is_right)
    files |= {f"{key}_{name}.svg": plot for (key, name), plot in plots.items()}
    write_files(folder, {**files, "results.json": as_json(report)})


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts whole, in their order; with the results last, all else is complete when they exist.

    Raises:
        PallavaError: The folder cannot be written.
    """
    with report_os_errors(f"cannot write the results to '{folder}'"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text, errors="replace")


def as_json(report: _Report) -> str:
    """Return the content of ``results.json``; numbers that are not defined are null."""
    defined = json.loads(json.dumps(report), parse_constant=lambda name: None)
    return json.dumps(defined, indent=2, allow_nan=False) + "\n"


def _reasons(report: _Report) -> list[tuple[str, int, str]]:
    return [
        (name, count, reason)
        for name, result in report["data"].items()
        for reason, count in {**result["left_out"], **result.get("problems", {})}.items()
    ]


def _page(
    report: _Report, plots: Mapping[tuple[str, str], str], answers: Mapping[str, AnswerSet], is_right: _Rule | None
) -> str:
    pairs = [(answer, each.questions) for each in answers.values() for answer in each.as_is]
    count = min(_NUM_SAMPLES, len(pairs))
    evenly = [pairs[number * len(pairs) // count] for number in range(count)]
    return render_page(
        "evaluation/report.html.jinja",
        report=report,
        interval=next(iter(report["data"].values()))["interval"],
        reasons=_reasons(report),
        overview=_overview(report),
        tables=_tables(report),
        plots=plots,
        samples=[_sample(answer, questions, is_right) for answer, questions in evenly],
        definitions=_definitions(report),
    )


def _definitions(report: _Report) -> dict[str, str]:
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
        if result.get("confidence"):
            found = {**found, **{**DEFINITIONS["confidence"], **DEFINITIONS["confidence_controls"], **found}}
    return found


def _confusion_plot(result: _Report) -> str:
    """Draw the confusion matrix of one data set; answers without a class, if any, have a column."""
    columns = result["confusion"]["labels"] + [_NO_CLASS] * bool(result["num_without_class"])
    return confusion_plot(columns, [row[: len(columns)] for row in result["confusion"]["counts"]])


def _confidence_plot(result: _Report) -> str:
    """Draw risk against coverage, and how often answers of each probability are right, of all kinds together."""
    found = result["confidence"]["kinds"][ALL]
    accuracy = found["scores"]["accuracy"]["value"]
    steps = [step / 200 for step in range(1, 201)]
    return confidence_plot(
        {
            "model": [(each["coverage"], each["risk"]) for each in found["curve"]],
            "best order": [(share, max(0.0, 1 - accuracy / share)) for share in steps],
            "random order": [(share, 1 - accuracy) for share in steps],
        },
        [(each["probability"], each["accuracy"], each["count"]) for each in found["bins"]],
    )


def _overview(report: _Report) -> list[Table]:
    """Make the one table of all data sets, if they have classes; a model that answers may name no class."""
    data, is_answers = report["data"], report["kind"] == "pallava"
    if not all("per_class" in result for result in data.values()):
        return []
    names = list(dict.fromkeys(metric for result in data.values() for metric in result["metrics"]))
    rows = []
    for name, result in data.items():
        metrics = [estimate(result["metrics"][each]) if each in result["metrics"] else "–" for each in names]
        without_class = [str(result["num_without_class"])] if is_answers else []
        rows.append([name, str(result["num_images"]), *metrics, percent(result["largest_class"]), *without_class])
    header = ["data", "images", *(name.replace("_", " ") for name in names), "largest class"]
    return [Table("zero-shot classification", header + [_NO_CLASS] * is_answers, rows)]


def _tables(report: _Report) -> dict[str, dict[str, Table]]:
    makers = {
        "per_class": _classes,
        "metrics": _scores,
        "scores": _scores,
        "image_to_text": _recalls,
        "groups": _groups,
        "confidence": _confidence,
        "thresholds": _thresholds,
        "consistency": _consistency,
    }
    return {
        name: {key: make(name, result) for key, make in makers.items() if result.get(key)}
        for name, result in report["data"].items()
    }


def _classes(name: str, result: _Report) -> Table:
    rows = [
        [label, *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:.0f}"]
        for label, row in result["per_class"].items()
    ]
    return Table(f"{name}: classes", ["class", "precision", "recall", "F1", "images"], rows)


def _scores(name: str, result: _Report) -> Table:
    """Make a row for each score, with its controls, which may lack some scores, beside it."""
    title, counted, scores = f"{name}: beside its controls", "images", result.get("metrics")
    if scores is None:
        counted, scores = "questions", result["scores"]
        title = f"{name}: {result['num_questions']} questions, {result['num_unanswered']} without an answer"
        if result.get("num_unread_choices"):
            title += f", {result['num_unread_choices']} choices that cannot be read"
    columns = [scores, *result["controls"].values()]
    rows = [
        [score, str(each["count"]), *(estimate(column[score]) if score in column else "" for column in columns)]
        for score, each in scores.items()
    ]
    return Table(title, ["score", counted, "model", *result["controls"]], rows)


def _recalls(name: str, result: _Report) -> Table:
    rows = [
        [f"{key.replace('_', ' ')} @{score.removeprefix('recall_at_')}", estimate(values), percent(values["chance"])]
        for key in ("image_to_text", "text_to_image")
        for score, values in result[key].items()
    ]
    size = f"{result['num_images']} images, {result['num_captions']} captions"
    return Table(f"{name}: {size}", ["recall", "value", "by chance"], rows)


def _groups(name: str, result: _Report) -> Table:
    rows = [[group, str(each["count"]), estimate(each)] for group, each in result["groups"].items()]
    return Table(f"{name}: right answers in each group", ["group", "questions", "right"], rows)


def _consistency(name: str, result: _Report) -> Table:
    found = result["consistency"]
    same, right = found["same"], found.get("accuracy", {})
    rows = []
    for view in dict.fromkeys([*right, *same]):
        count = str((same.get(view) or right[view])["count"])
        estimates = [estimate(column[view]) if view in column else "" for column in (same, right)]
        rows.append([view.replace("_", " "), count, *estimates, str(found["num_empty"].get(view, ""))])
    title = f"{name}: consistency"
    if found["num_left_out"]:
        title += f"; questions left out whose image cannot be opened: {found['num_left_out']}"
    return Table(title, ["image", "questions", "same answer", "right", "empty answers"], rows)


def _confidence(name: str, result: _Report) -> Table:
    rows = []
    for kind, found in result["confidence"]["kinds"].items():
        scores, controls = found["scores"], found["controls"]
        values = map(estimate, (scores["accuracy"], scores["ece"], controls["calibrated"]["ece"], scores["aurc"]))
        orders = [percent(controls[order]["aurc"]["value"]) for order in ("best order", "random order")]
        rows.append([kind, str(found["count"]), str(found["num_among"]), *values, *orders])
    title = f"{name}: confidence"
    if num_left_out := result["confidence"]["num_left_out"]:
        title += f"; questions left out whose image cannot be opened: {num_left_out}"
    header = [
        "kind",
        "questions",
        "yes, no or letter",
        "accuracy",
        "ECE",
        "calibrated",
        "AURC",
        "best order",
        "random order",
    ]
    return Table(title, header, rows)


def _thresholds(name: str, result: _Report) -> Table:
    """Make a row for each kind and wanted accuracy; what no threshold reaches has a word in its place."""
    rows = [
        [
            kind,
            percent(each["wanted"]),
            _round_down(each["threshold"]) if each["is_reached"] else "not reached",
            estimate(each["accuracy"]),
            estimate(each["coverage"]),
            str(each["accuracy"]["count"]),
        ]
        for kind, found in result["thresholds"]["kinds"].items()
        for each in found
    ]
    fitted, others = result["thresholds"]["num_images"]
    title = f"{name}: thresholds fitted on {fitted} images, and what they do on the other {others}"
    return Table(title, ["kind", "wanted accuracy", "threshold", "selective accuracy", "coverage", "answers"], rows)


def _round_down(threshold: float) -> str:
    """Return a threshold with digits for all probabilities of float32 near 1: it accepts what the exact one does."""
    return f"{Decimal(threshold).quantize(Decimal('1e-8'), ROUND_FLOOR):f}"


def _sample(answer: Answer, questions: Questions, is_right: _Rule | None) -> dict[str, Any]:
    picture, problem = None, ""
    if answer.item.image:
        try:
            picture = open_image(answer.item.image)
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
        except ImageError as error:
            problem = str(error)
    return {
        "item": answer.item,
        "text": answer.text or "(no answer)",
        "is_right": None if is_right is None else is_right(answer, questions),
        "picture": picture,
        "problem": problem,
    }
