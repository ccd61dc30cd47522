"""Results of a PA-LLaVA's examination: tables for the terminal, and a page with some questions and their images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from pallava.evaluation import report as shared
from pallava.evaluation.answers.consistency import IsRight
from pallava.evaluation.answers.items import Answered
from pallava.evaluation.report import CAUTION, Table, as_estimate, as_html
from pallava.images import ImageError, open_image
from pallava.report.page import Answered as Shown
from pallava.report.page import answers as answer_list
from pallava.report.page import card, grid, heading, note, page, picture
from pallava.report.tables import table

_NUM_SAMPLES = 12
_THUMBNAIL = 320
T = TypeVar("T")


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report: scores beside their controls, then groups and consistency where there are any."""
    shown = shared.tables(report) if report["task"] == "zero-shot" else []
    for name, result in report["data"].items():
        shown += [] if report["task"] == "zero-shot" else [_scores(name, result)]
        if result.get("groups"):
            shown.append(_groups(name, result["groups"]))
        if result.get("consistency"):
            shown.append(_consistency(name, result["consistency"]))
    return shown


def write_answers_report(
    report: Mapping[str, Any],
    predictions: Mapping[str, Mapping[str, Sequence[Answered]]],
    folder: Path,
    rules: Mapping[str, IsRight | None],
) -> None:
    """Writes ``results.json``, ``index.html`` and the predictions.

    Args:
        report: ``model``, ``task`` and the results by the name of the ``data``.
        predictions: By the name of the data and that of the view: on images as they are (an empty name), shuffled,
            changed.
        folder: Where to.
        rules: By the name of the data, what makes an answer right; None where nothing does.

    Raises:
        PallavaError: The folder cannot be written.
    """
    views = dict.fromkeys(view for by_view in predictions.values() for view in by_view)
    files = {
        f"predictions{'_' * bool(view)}{view}.jsonl": "".join(
            json.dumps(each.as_record(), ensure_ascii=False) + "\n"
            for by_view in predictions.values()
            for each in by_view.get(view, ())
        )
        for view in views
    }
    files["index.html"] = _page(report, [(each, rules[name]) for name in predictions for each in predictions[name][""]])
    files |= shared.confusion_files(report)
    shared.write_files(folder, {**files, "results.json": shared.as_json(report)})


def _scores(name: str, result: Mapping[str, Any]) -> Table:
    title = f"{name}: {result['num_questions']} questions, {result['num_unanswered']} without an answer"
    if result.get("num_unread_choices"):
        title += f", {result['num_unread_choices']} choices that cannot be read"
    return shared.beside_controls(title, "questions", result["scores"], result["controls"])


def _groups(name: str, groups: Mapping[str, Any]) -> Table:
    rows = [(group, str(estimate["count"]), as_estimate(estimate)) for group, estimate in groups.items()]
    return Table(f"{name}: right answers in each group", ("group", "questions", "right"), tuple(rows))


def _consistency(name: str, result: Mapping[str, Any]) -> Table:
    accuracy = result.get("accuracy", {})
    rows = [
        (
            view.replace("_", " "),
            str((result["same"].get(view) or accuracy[view])["count"]),
            as_estimate(result["same"][view]) if view in result["same"] else "",
            as_estimate(accuracy[view]) if view in accuracy else "",
            str(result["num_empty"].get(view, "")),
        )
        for view in dict.fromkeys([*accuracy, *result["same"]])
    ]
    title = f"{name}: consistency"
    if result["num_left_out"]:
        title += f"; questions left out whose image cannot be opened: {result['num_left_out']}"
    return Table(title, ("image", "questions", "same answer", "right", "empty answers"), tuple(rows))


def _page(report: Mapping[str, Any], judged: Sequence[tuple[Answered, IsRight | None]]) -> str:
    first = next(iter(report["data"].values()))
    title = f"{report['task']} of {report['model']}"
    parts = [heading(title, f"Values with their intervals ({first['interval']}).", level=1), note(CAUTION)]
    shown = tables(report)
    if report["task"] == "zero-shot":
        parts += shared.sections(report)
        shown = shown[len(shared.tables(report)) :]
    for name, result in report["data"].items():
        for reason, count in {**result["left_out"], **result["problems"]}.items():
            parts.append(note(f"{name}: {count} x {reason}"))
    parts += [as_html(each) for each in shown]
    parts.append(heading("Samples", "Spread evenly over the data, not chosen."))
    parts.append(grid([_sample(*each) for each in spread(judged, _NUM_SAMPLES)]))
    return page(title, [*parts, *shared.definitions(report), _settings(report)])


def spread(values: Sequence[T], count: int) -> list[T]:
    """Up to `count` of them, at even distances."""
    return [values[number * len(values) // count] for number in range(count)] if len(values) > count else [*values]


def _sample(each: Answered, is_right: IsRight | None) -> str:
    item, answer = each.item, each.answer or "(no answer)"
    if is_right is None:
        said = table(["", ""], [["model", answer], ["reference", item.reference]], is_text=True)
    else:
        said = answer_list([Shown(item.kind, answer, item.reference, is_right(each))])
    return card(item.question, _thumbnail(item.image) + said)


def _thumbnail(path: str) -> str:
    if not path:
        return ""
    try:
        image = open_image(path)
    except ImageError as error:
        return note(str(error))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    return picture(image, width=min(image.width, 240))


def _settings(report: Mapping[str, Any]) -> str:
    rows = [[name.replace("_", " "), str(value)] for name, value in report["settings"].items()]
    return heading("Settings") + table(["setting", "value"], rows, is_text=True)
