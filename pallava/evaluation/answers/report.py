"""Results of a PA-LLaVA: tables for the terminal, and a page with some questions and their images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pallava.evaluation import report as shared
from pallava.evaluation.answers.items import AS_IS, Answer, AnswerSet, Questions
from pallava.images import ImageError, open_image
from pallava.report.page import ShownAnswer, card, grid, heading, note, page, picture
from pallava.report.page import answers as answer_list
from pallava.report.table import Table

_NUM_SAMPLES = 12
_THUMBNAIL = 320  # pixels
_SHOWN_WIDTH = 240

Rule = Callable[[Answer, Questions], bool]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report: scores beside their controls, then groups and consistency, if any."""
    shown = shared.tables(report) if report["task"] == "zero-shot" else []
    for name, result in report["data"].items():
        shown += [] if report["task"] == "zero-shot" else [_scores(name, result)]
        if result.get("groups"):
            shown.append(_groups(name, result["groups"]))
        if result.get("consistency"):
            shown.append(_consistency(name, result["consistency"]))
    return shown


def report_text(report: Mapping[str, Any]) -> str:
    """Return the tables of a report, of a PA-LLaVA or an encoder, and the counts of what was left out, for printing."""
    is_encoder = report["kind"] == "encoder"
    shown = shared.tables(report) if is_encoder else tables(report)
    lines = [
        f"{name}: {'left out ' if is_encoder else ''}{count} x {reason}"
        for name, result in report["data"].items()
        for reason, count in {**result["left_out"], **result.get("problems", {})}.items()
    ]
    return "\n".join(["\n\n".join(each.to_text() for each in shown), *lines])


def write_answers_report(
    report: Mapping[str, Any], answers: Mapping[str, AnswerSet], folder: Path, is_right: Rule | None
) -> None:
    """Write ``results.json``, ``index.html`` and the predictions.

    Args:
        report: ``model``, ``task`` and the results by the name of the ``data``.
        answers: All answers by the name of the data.
        folder: Folder to write to.
        is_right: Whether an answer is right; None for answers that are only more or less near.

    Raises:
        PallavaError: The folder cannot be written.
    """
    views = dict.fromkeys(view for each in answers.values() for view in each.by_view)
    files = {
        f"predictions{'_' * bool(view)}{view}.jsonl": "".join(
            json.dumps(answer.as_record(), ensure_ascii=False) + "\n"
            for each in answers.values()
            for answer in each.by_view.get(view, ())
        )
        for view in views
    }
    files["index.html"] = _page(report, answers, is_right)
    files |= shared.confusion_files(report)
    shared.write_files(folder, {**files, "results.json": shared.as_json(report)})


def _scores(name: str, result: Mapping[str, Any]) -> Table:
    title = f"{name}: {result['num_questions']} questions, {result['num_unanswered']} without an answer"
    if result.get("num_unread_choices"):
        title += f", {result['num_unread_choices']} choices that cannot be read"
    return shared.beside_controls(title, "questions", result["scores"], result["controls"])


def _groups(name: str, groups: Mapping[str, Any]) -> Table:
    rows = [(group, str(estimate["count"]), shared.as_estimate(estimate)) for group, estimate in groups.items()]
    return Table(f"{name}: right answers in each group", ("group", "questions", "right"), tuple(rows))


def _consistency(name: str, result: Mapping[str, Any]) -> Table:
    accuracy = result.get("accuracy", {})
    rows = [
        (
            view.replace("_", " "),
            str((result["same"].get(view) or accuracy[view])["count"]),
            shared.as_estimate(result["same"][view]) if view in result["same"] else "",
            shared.as_estimate(accuracy[view]) if view in accuracy else "",
            str(result["num_empty"].get(view, "")),
        )
        for view in dict.fromkeys([*accuracy, *result["same"]])
    ]
    title = f"{name}: consistency"
    if result["num_left_out"]:
        title += f"; questions left out whose image cannot be opened: {result['num_left_out']}"
    return Table(title, ("image", "questions", "same answer", "right", "empty answers"), tuple(rows))


def _page(report: Mapping[str, Any], answers: Mapping[str, AnswerSet], is_right: Rule | None) -> str:
    first = next(iter(report["data"].values()))
    title = f"{report['task']} of {report['model']}"
    parts = [heading(title, f"Values with their intervals ({first['interval']}).", level=1), note(shared.CAUTION)]
    shown = tables(report)
    if report["task"] == "zero-shot":
        parts += shared.sections(report)
        shown = shown[len(shared.tables(report)) :]
    parts += [
        note(f"{name}: {count} x {reason}")
        for name, result in report["data"].items()
        for reason, count in {**result["left_out"], **result["problems"]}.items()
    ]
    parts += [each.to_html() for each in shown]
    parts.append(heading("Samples", "Spread evenly over the data, not chosen."))
    pairs = [(answer, each.questions) for each in answers.values() for answer in each.by_view[AS_IS]]
    evenly = (
        [pairs[n * len(pairs) // _NUM_SAMPLES] for n in range(_NUM_SAMPLES)] if len(pairs) > _NUM_SAMPLES else pairs
    )
    parts.append(grid([_sample(answer, questions, is_right) for answer, questions in evenly]))
    settings = [[name.replace("_", " "), str(value)] for name, value in report["settings"].items()]
    parts += [*shared.definitions(report), heading("Settings")]
    return page(title, [*parts, Table("", ["setting", "value"], settings, is_text=True).to_html()])


def _sample(answer: Answer, questions: Questions, is_right: Rule | None) -> str:
    item, text = answer.item, answer.text or "(no answer)"
    if is_right is None:
        shown = Table("", ["", ""], [["model", text], ["reference", item.reference]], is_text=True).to_html()
    else:
        shown = answer_list([ShownAnswer(item.kind, text, item.reference, is_right(answer, questions))])
    return card(item.question, _thumbnail(item.image) + shown)


def _thumbnail(path: str) -> str:
    if not path:
        return ""
    try:
        image = open_image(path)
    except ImageError as error:
        return note(str(error))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    return picture(image, width=min(image.width, _SHOWN_WIDTH))
