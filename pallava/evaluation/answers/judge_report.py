"""Results of judging: tables for the terminal, and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pallava.evaluation.answers.caption_scores import CONTROL
from pallava.evaluation.report import Table, as_estimate, as_json, write_files
from pallava.judging.judge import Judgement
from pallava.judging.prompts import MAX_GRADE


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The grades of a language model, and the scores of words beside their control, where there are such."""
    shown = []
    if report["similarity"]:
        shown += [_similarity(report["similarity"]), _grades(report["similarity"])]
    if report["words"]:
        shown.append(_words(report["words"]))
    return shown


def write_judge_report(report: Mapping[str, Any], judgements: Sequence[Judgement], folder: Path) -> None:
    """Writes ``results.json``, and ``judgements.jsonl`` if a model judged.

    Raises:
        PallavaError: The folder cannot be written.
    """
    lines = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in judgements)
    files = {"judgements.jsonl": lines} if judgements else {}
    write_files(folder, {**files, "results.json": as_json(report)})


def _similarity(result: Mapping[str, Any]) -> Table:
    score = result["scores"]["similarity"]
    value = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" if score["count"] else "–"
    counts = [str(result[f"num_{name}"]) for name in ("questions", "unanswered", "unreadable", "refused")]
    header = (f"similarity, 0 to {MAX_GRADE}", "answers", "of them empty", "unreadable replies", "refused requests")
    return Table(f"judged by {result['judge']['model']}", header, ((value, *counts),))


def _grades(result: Mapping[str, Any]) -> Table:
    return Table("answers of each grade", tuple(result["grades"]), (tuple(map(str, result["grades"].values())),))


def _words(result: Mapping[str, Any]) -> Table:
    control = result["controls"].get(CONTROL, {})
    nothing = {"value": math.nan}
    rows = [
        (name, as_estimate(score), as_estimate(control.get(name, nothing))) for name, score in result["scores"].items()
    ]
    title = f"words of {result['num_questions']} captions, {result['num_unanswered']} of them empty"
    return Table(title, ("score", "own reference", "another's reference"), tuple(rows))
