"""Readers of questions: of the public sets, of the user's own, and of training files; and which of them are asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pallava.data.material import open_records, read_source
from pallava.data.sources.base import KINDS, Question
from pallava.data.training_file import question_text
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Item, Kind, Questions, is_texts
from pallava.io.records import RecordFile
from pallava.prompts import CHOICE_LETTERS, IMAGE_TOKEN, build_choice_question, turns_from_conversations

_CLOSED = ("yes", "no")
_CUSTOM_KINDS = ("open", "closed", "choice")
_EXPECTED = (
    '{"image" ("" for none), "question", "answer"}, and optionally "id", "kind" (open, closed, choice), "choices" and '
    '"group"'
)


def read_source_questions(
    name: str,
    root: Path,
    split: str | None,
    *,
    columns: str | Mapping[str, str] | None = None,
    image_folder: Path | None = None,
) -> Questions:
    """Read the questions of a source, such as "path-vqa", worded as in training files.

    The split is test by default, if the set always has splits; only a table ("csv") has columns and an image folder.

    Raises:
        PallavaError: The source does not exist or has no questions, the folder is not the set, or lacks the split.
    """
    kinds: dict[str, Kind] = {"choice": "choice", "yes/no": "closed"}
    spec = read_source(f"{name}={root}", split=split, columns=columns, default_split="test")
    records = open_records(spec, image_folder=image_folder)
    items = []
    for record, path in records:
        if not isinstance(record, Question):
            found = next((kind for kind, record_type in KINDS.items() if isinstance(record, record_type)), "others")
            raise PallavaError(f"{name} is a set of {found}, but questions are needed here")
        text, kind = question_text(record).strip(), kinds.get(record.answer_type, "open")
        items.append(Item(record.id, str(path), text, record.answer.strip(), kind, record.options))
    return Questions(items, dict(records.tally.dropped))


def read_custom(path: Path, image_folder: Path | None = None) -> Questions:
    """Read questions of the user's own, a JSON list or JSONL; paths are relative to `image_folder`, or else the file's.

    Raises:
        PallavaError: The file cannot be read, or a record is wrong; the message gives its place.
    """
    items = []
    for record in RecordFile(path):
        try:
            items.append(_custom_item(record.value, record.index, image_folder or path.parent))
        except PallavaError as error:
            raise PallavaError(f"'{path}', {record.position}: {error}; expected {_EXPECTED}") from None
    return Questions(items)


def read_training_answers(path: Path) -> list[tuple[str, str]]:
    """Read questions and answers of a training file (id, image, conversations), the questions as items have them.

    Raises:
        PallavaError: The file cannot be read, or has no conversation.
    """
    pairs: list[tuple[str, str]] = []
    for record in RecordFile(path):
        conversation = record.value.get("conversations") if isinstance(record.value, dict) else None
        for turn in turns_from_conversations(conversation) if isinstance(conversation, list) else ():
            if turn.answer:
                pairs.append((turn.question.replace(IMAGE_TOKEN, "").strip(), turn.answer.strip()))
    if not pairs:
        raise PallavaError(f"'{path}' must be a training file of id, image, conversations, got no conversation")
    return pairs


def select(
    data: Mapping[str, Questions], *, excluded: Iterable[str] = (), limit: int | None = None
) -> tuple[dict[str, Questions], int]:
    """Leave out all questions of some ids, and take the first of the rest of each data set, at most `limit`.

    Returns:
        The questions left, each with an id of its own, which begins with the name of the data set if there are
        several; and the number of those left out by id.

    Raises:
        PallavaError: No excluded id is in the data, or no question is left.
    """
    unwanted = {each.strip() for each in excluded}
    chosen: dict[str, Questions] = {}
    num_excluded = 0
    for name, questions in data.items():
        prefix = f"{name}/" if len(data) > 1 else ""
        ids = _unique([item.id for item in questions.items])
        kept = [
            replace(item, id=prefix + own)
            for item, own in zip(questions.items, ids, strict=True)
            if item.id.strip() not in unwanted
        ]
        num_excluded += len(questions.items) - len(kept)
        if not kept:
            raise PallavaError(f"all questions of '{name}' are excluded; no question is left")
        chosen[name] = replace(questions, items=kept[:limit])
    if unwanted and not num_excluded:
        first = next(iter(data.values())).items[0].id
        raise PallavaError(
            f"none of the {len(unwanted)} ids to exclude is in the data, whose first is {first!r}; check that the list "
            "belongs to this data set and split"
        )
    return chosen, num_excluded


def read_excluded(path: Path) -> list[str]:
    """Return the ids of a text file, one a line, as `pallava data leak` writes them.

    Raises:
        PallavaError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PallavaError(f"cannot read the ids to exclude from '{path}': {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _custom_item(value: Any, index: int, folder: Path) -> Item:
    if not isinstance(value, Mapping):
        raise PallavaError(f"expected a JSON object, got a {type(value).__name__}")
    texts = {}
    for key in ("image", "question", "answer"):
        if key not in value:  # with a misspelt "image", the question would be asked without it
            raise PallavaError(f"{key!r} is missing")
        if not isinstance(text := value[key], str) or "\0" in text:
            raise PallavaError(f"{key!r} must be a text")
        texts[key] = text.replace(IMAGE_TOKEN, "").strip()
        if not texts[key] and key != "image":
            raise PallavaError(f"{key!r} is empty")
    question, answer, choices = texts["question"], texts["answer"], value.get("choices") or []
    if not is_texts(choices):
        raise PallavaError("'choices' must be a list of texts")
    kind: Any = value.get("kind") or ("choice" if choices else "closed" if _bare(answer) in _CLOSED else "open")
    _check_kind(kind, answer, choices)
    if choices:
        answer = _letter(answer, choices)
        question = build_choice_question(question, choices)
    item_id, group = value.get("id", index), value.get("group")
    if not isinstance(item_id, str | int | float) or isinstance(item_id, bool):
        raise PallavaError(f"'id' must be a text or a number, got {json.dumps(item_id)}")
    path = str(folder / texts["image"]) if texts["image"] else ""
    return Item(str(item_id), path, question, answer, kind, tuple(choices), "" if group is None else str(group))


def _check_kind(kind: Any, answer: str, choices: Sequence[str]) -> None:
    if kind not in _CUSTOM_KINDS:
        raise PallavaError(f"'kind' must be one of {', '.join(_CUSTOM_KINDS)}, got {kind!r}")
    if choices and kind != "choice":
        raise PallavaError(f"a question of the kind {kind!r} cannot have choices")
    if kind == "closed" and _bare(answer) not in _CLOSED:
        raise PallavaError(f"the answer to a closed question must be yes or no, got {answer!r}")
    if kind == "choice" and not choices and (len(answer) != 1 or answer.upper() not in CHOICE_LETTERS):
        letters = f"{CHOICE_LETTERS[0]} to {CHOICE_LETTERS[-1]}"
        raise PallavaError(f"the answer to a choice without choices must be a letter from {letters}, got {answer!r}")


def _bare(answer: str) -> str:
    return answer.strip().rstrip(".").casefold()


def _letter(answer: str, choices: Sequence[str]) -> str:
    """Return the letter of the right choice, which a record gives by its letter or its text."""
    letters = CHOICE_LETTERS[: len(choices)]
    named = [letter for letter, text in zip(letters, choices, strict=False) if _bare(text) == _bare(answer)]
    if len(named) == 1:
        return named[0]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    raise PallavaError(f"the answer must be one of the choices or its letter, got {answer!r}")


def _unique(ids: Sequence[str]) -> list[str]:
    """Add a number to ids that come again, such that all ids differ."""
    taken, count, unique = set(ids), Counter[str](), []
    for each in ids:
        count[each] += 1
        own = each
        while own in taken and count[each] > 1:
            own = f"{each}~{count[each]}"
            count[each] += own in taken
        taken.add(own)
        unique.append(own)
    return unique
