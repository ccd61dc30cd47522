"""Reading what ``pallava evaluate`` wrote down: ``predictions.jsonl``, one answered item a line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answered, Kind
from pallava.io.records import RecordFile

_TEXTS = ("id", "image", "question", "reference", "kind", "answer")


def read_predictions(path: Path) -> list[Answered]:
    """Reads all answers, in order.

    Args:
        path: The file, or the folder that it lies in.

    Raises:
        PallavaError: It cannot be read, holds nothing or something else, or an id twice.
    """
    path = path / "predictions.jsonl" if path.is_dir() else path
    answered = []
    for record in RecordFile(path):
        if problem := _problem(record.value):
            raise PallavaError(
                f"'{path}', {record.position}: {problem}; expected a line of the predictions.jsonl that "
                "`pallava evaluate` writes"
            )
        answered.append(Answered.from_record(record.value))
    for name, count in Counter(each.item.id for each in answered).items():
        if count > 1:
            raise PallavaError(f"'{path}' holds the id '{name}' {count} times; expected each once")
    return answered


def _problem(record: Any) -> str:
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not a record"
    if missing := [name for name in (*_TEXTS, "choices") if name not in record]:
        return f"no '{missing[0]}'"
    if wrong := [name for name in _TEXTS if not isinstance(record[name], str)]:
        return f"'{wrong[0]}' is no text"
    if not isinstance(record["choices"], list) or not all(isinstance(each, str) for each in record["choices"]):
        return "'choices' is no list of texts"
    return "" if record["kind"] in get_args(Kind) else f"there is no kind '{record['kind']}'"
