"""Rows of training material and of evaluation sets, in the one form that the leak audit compares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallava.data.material import KeptMaterial, Material, open_material
from pallava.data.sources import SOURCES
from pallava.data.sources.base import Question, RowDropped, printable
from pallava.data.sources.files import json_rows
from pallava.errors import PallavaError
from pallava.prompts import CAPTION_PROMPTS, IMAGE_TOKEN

_OPTIONS = re.compile(r"\n\s*\(?A[.):]\s.*", re.DOTALL)
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of either side.

    Attributes:
        id: As in its file; of several sources in one file "SOURCE:ID".
        images: Absolute paths.
        questions: As `normalize_question` leaves them.
    """

    id: str
    images: tuple[str, ...]
    questions: tuple[str, ...]


class TrainingRows:
    """The rows of a training file; what is no row is passed over, since `pallava data check` tells it."""

    def __init__(self, path: str | Path, image_folder: str | Path) -> None:
        self._path, self._folder = Path(path), Path(image_folder).resolve()

    def __iter__(self) -> Iterator[AuditRow]:
        """Yields the rows; one without an id has its position as id."""
        for row in json_rows(self._path, lambda done: None):
            if isinstance(row, RowDropped) or not isinstance(row.value, dict):
                continue
            found = row.value.get("image") or []
            names = [name for name in ([found] if isinstance(found, str) else found) if isinstance(name, str)]
            row_id = row.value.get("id")
            yield AuditRow(
                row.position if row_id is None else str(row_id),
                tuple(str(self._folder / printable(name)) for name in names),
                tuple(_questions(row.value.get("conversations"))),
            )


class MaterialRows:
    """The rows of a source, or of the kept records of cleaning."""

    def __init__(self, material: Material) -> None:
        self._material = material

    def __iter__(self) -> Iterator[AuditRow]:
        """Yields the rows; captions have no question, and several sources can use one id, so that theirs name both."""
        has_several = len(self._material.names) > 1
        for record, path in self._material:
            question = normalize_question(record.question) if isinstance(record, Question) else ""
            row_id = f"{record.source}:{record.id}" if has_several else record.id
            yield AuditRow(row_id, (str(path),), (question,) if question else ())


def open_rows(
    text: str, *, image_folder: str | Path | None = None, split: str | None = None, usual_split: str | None = None
) -> Iterable[AuditRow]:
    """Opens what a user named: a training file, kept.jsonl of cleaning, or NAME=ROOT.

    Args:
        text: The path, or NAME=ROOT.
        image_folder: Of a training file; of kept records where it is not the one that their summary names.
        split: Of a source.
        usual_split: Of a source of questions, if no split is given.

    Raises:
        PallavaError: It is none of these, or a training file comes without its image folder.
    """
    path, name = Path(text), text.partition("=")[0]
    if name in SOURCES or not path.is_file():
        has_splits = name in SOURCES and SOURCES[name].kind == "questions"
        return MaterialRows(open_material(text, split=split or (usual_split if has_splits else None)))
    keys = _first_keys(path)
    if "conversations" in keys:
        if image_folder is None or not Path(image_folder).is_dir():
            what = "needs the folder of its images" if image_folder is None else f"has no image folder '{image_folder}'"
            raise PallavaError(f"the training file '{text}' {what}; give --train-images or --test-images")
        return TrainingRows(path, image_folder)
    if "kind" in keys:
        return MaterialRows(KeptMaterial(path, image_folder=image_folder))
    raise PallavaError(
        f"'{text}' is neither a training file (id, image, conversations) nor kept.jsonl of `pallava data clean`; the "
        f"keys of its first row are {', '.join(sorted(keys)[:8]) or 'none'}"
    )


def normalize_question(text: str) -> str:
    """A question without image markers, options, case, punctuation and stray spaces."""
    text = _OPTIONS.sub("", unicodedata.normalize("NFKC", text.replace(IMAGE_TOKEN, "")))
    return _NO_WORD.sub(" ", text.casefold()).strip()


_PROMPTS = frozenset(map(normalize_question, CAPTION_PROMPTS))


def _questions(conversations: Any) -> Iterator[str]:
    """The human side of a conversation, without what asks for a caption."""
    for message in conversations if isinstance(conversations, list) else []:
        if isinstance(message, dict) and message.get("from") == "human" and isinstance(message.get("value"), str):
            question = normalize_question(message["value"])
            if question and question not in _PROMPTS:
                yield question


def _first_keys(path: Path) -> set[str]:
    row = next(iter(json_rows(path, lambda done: None)), None)
    value = None if row is None or isinstance(row, RowDropped) else row.value
    return set(value) if isinstance(value, dict) else set()
