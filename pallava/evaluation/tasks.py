"""What a PA-LLaVA can be examined in. A task reads items, whose prompts are those of training, and scores answers.

Nothing here asks a model: loading and scoring are functions of files and answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pallava.data.material import SourceSpec, open_records
from pallava.data.sources.base import Question
from pallava.data.training_file import question_text
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Item, Kind
from pallava.evaluation.examples import CaptionedImages, LabelledImages, read_captioned
from pallava.io.records import RecordFile
from pallava.prompts import (
    CAPTION_PROMPTS,
    CHOICE_LETTERS,
    IMAGE_TOKEN,
    build_choice_question,
    build_class_question,
    turns_from_conversations,
)

_CLOSED = ("yes", "no")
_CUSTOM_KINDS = ("open", "closed", "choice")
_EXPECTED = (
    '{"image" ("" for none), "question", "answer"}, and if wanted "id", "kind" (open, closed, choice), "choices" and '
    '"group"'
)


@dataclass
class Questions:
    """What is asked of one data set.

    Attributes:
        items: The questions.
        left_out: Count of what cannot be asked, for each reason.
        labelled: The images with their classes, where the items ask for these.
    """

    items: list[Item]
    left_out: dict[str, int] = field(default_factory=dict)
    labelled: LabelledImages | None = None


@dataclass(frozen=True)
class Task:
    """What can be examined.

    Attributes:
        max_new_tokens: Longest answer, unless the user says otherwise.
        kinds: What the references are.
    """

    max_new_tokens: int
    kinds: tuple[Kind, ...]


TASKS: dict[str, Task] = {
    "pathvqa": Task(64, ("open", "closed")),
    "pmc-vqa": Task(32, ("choice",)),
    "custom": Task(64, ("open", "closed", "choice")),
    "caption": Task(256, ("caption",)),
    "zero-shot": Task(32, ("class",)),
}
"""By the name of the subcommand."""


def read_public_questions(name: str, root: Path, split: str) -> Questions:
    """Reads PathVQA ("path-vqa") or PMC-VQA ("pmc-vqa") as training files hold them.

    Raises:
        PallavaError: The folder is not the set, lacks the split, or has no question in it.
    """
    records = open_records(SourceSpec(name, str(root), split))
    items = [_public_item(record, path) for record, path in records if isinstance(record, Question)]
    return _checked(Questions(items, dict(records.dropped)), f"the split {split!r} of {root}")


def _public_item(question: Question, image: Path) -> Item:
    kind: Kind = "choice" if question.answer_type == "choice" else "open"
    if question.answer_type == "yes/no":
        kind = "closed"
    return Item(
        question.id, str(image), question_text(question).strip(), question.answer.strip(), kind, question.options
    )


def read_custom(path: Path, image_folder: Path | None = None) -> Questions:
    """Reads questions of the user's own.

    Args:
        path: A JSON list or JSONL of records.
        image_folder: What the images' paths are relative to; default: the folder of the file.

    Raises:
        PallavaError: The file cannot be read, or a record is wrong; the message gives its place.
    """
    items = []
    for record in RecordFile(path):
        try:
            items.append(_custom_item(record.value, record.index, image_folder or path.parent))
        except PallavaError as error:
            raise PallavaError(f"'{path}', {record.position}: {error}; expected {_EXPECTED}") from None
    return _checked(Questions(items), f"'{path}'")


def _custom_item(value: Any, index: int, folder: Path) -> Item:
    if not isinstance(value, Mapping):
        raise PallavaError("not an object")
    if "image" not in value:  # a misspelt key would have the question asked without its image
        raise PallavaError("no 'image'")
    question, answer, image = (_text(value, key) for key in ("question", "answer", "image"))
    if not question or not answer:
        raise PallavaError(f"no {'answer' if question else 'question'}")
    choices = value.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise PallavaError('"choices" is not a list of texts')
    kind = _kind(value.get("kind"), answer, choices)
    if choices:
        answer = _letter(answer, choices)
        question = build_choice_question(question, choices)
    item_id, group = value.get("id", index), value.get("group")
    if not isinstance(item_id, str | int | float) or isinstance(item_id, bool):
        raise PallavaError(f"the id {json.dumps(item_id)} is neither a text nor a number")
    path = str(folder / image) if image else ""
    return Item(str(item_id), path, question, answer, kind, tuple(choices), "" if group is None else str(group))


def _kind(given: Any, answer: str, choices: Sequence[str]) -> Any:
    """The kind that a record names, or that its answer and choices speak for."""
    kind = given or ("choice" if choices else "closed" if _bare(answer) in _CLOSED else "open")
    if kind not in _CUSTOM_KINDS:
        raise PallavaError(f"the kind {kind!r} is none of {', '.join(_CUSTOM_KINDS)}")
    if choices and kind != "choice":
        raise PallavaError(f"a question of the kind {kind!r} has no choices")
    if kind == "closed" and _bare(answer) not in _CLOSED:
        raise PallavaError(f"the answer {answer!r} to a closed question is neither yes nor no")
    if kind == "choice" and not choices and (len(answer) != 1 or answer.upper() not in CHOICE_LETTERS):
        letters = f"{CHOICE_LETTERS[0]} to {CHOICE_LETTERS[-1]}"
        raise PallavaError(f"the answer {answer!r} to a choice without choices is no letter from {letters}")
    return kind


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key, "")
    if not isinstance(found, str) or "\0" in found:
        raise PallavaError(f"{key!r} is not a text")
    return found.replace(IMAGE_TOKEN, "").strip()


def _bare(answer: str) -> str:
    return answer.strip().rstrip(".").casefold()


def _letter(answer: str, choices: Sequence[str]) -> str:
    """The letter of the right choice, which is given by itself or by its text."""
    letters = CHOICE_LETTERS[: len(choices)]
    named = [letter for letter, text in zip(letters, choices, strict=False) if _bare(text) == _bare(answer)]
    if len(named) == 1:
        return named[0]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    raise PallavaError(f"the answer {answer!r} is not one of the choices, nor the letter of one")


def caption_items(data: CaptionedImages) -> Questions:
    """Asks for a description of every image; of several captions of an image the first is the reference."""
    first: dict[Path, Item] = {}
    for image, caption, item_id in zip(data.images, data.captions, data.ids, strict=True):
        first.setdefault(image, Item(item_id, str(image), CAPTION_PROMPTS[0], caption, "caption"))
    left_out = Counter(data.left_out)
    left_out["a further caption of an image"] += len(data.images) - len(first)
    return _checked(Questions(list(first.values()), dict(+left_out)), "the data")


def read_captions(
    path: Path, name: str = "", *, image_folder: Path | None = None, split: str | None = None
) -> Questions:
    """Reads images with captions, as `pallava.evaluation.examples.read_captioned` does.

    Raises:
        PallavaError: They cannot be read, or there is none.
    """
    return caption_items(read_captioned(path, name, image_folder=image_folder, split=split))


def class_items(data: LabelledImages) -> Questions:
    """Asks which class every image shows, by the first name of each; the reference is the label."""
    question = build_class_question([names[0] for _, names in data.class_set.classes])
    labels = data.class_set.labels
    items = [
        Item(item_id, str(image), question, labels[label], "class", labels)
        for image, label, item_id in zip(data.images, data.labels, data.ids, strict=True)
    ]
    return _checked(Questions(items, dict(data.left_out), data), "the data")


def select(
    data: Mapping[str, Questions], *, excluded: Iterable[str] = (), limit: int | None = None
) -> tuple[dict[str, Questions], int]:
    """Leaves out some questions by id, and takes the first of the rest of each data set.

    Args:
        data: By its name.
        excluded: Ids as the data has them; all questions of such an id are left out.
        limit: How many to take of each data set.

    Returns:
        What is left, each with an id of its own, which also tells the data sets apart where there are several; and how
        many were left out by id.

    Raises:
        PallavaError: No excluded id is in the data, or nothing is left.
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
            raise PallavaError(f"all questions of {name} are excluded; there is nothing to ask")
        chosen[name] = replace(questions, items=kept[:limit])
    if unwanted and not num_excluded:
        first = next(iter(data.values())).items[0].id
        raise PallavaError(
            f"none of the {len(unwanted)} ids to exclude is in the data, whose first is {first!r}: is this the list of "
            "another set or split?"
        )
    return chosen, num_excluded


def _unique(ids: Sequence[str]) -> list[str]:
    """The same, but an id that comes again gets a number, such that it is none of the others."""
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


def read_excluded(path: Path) -> list[str]:
    """Reads ids, one a line, as `pallava data leak` writes them.

    Raises:
        PallavaError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PallavaError(f"cannot read the ids to exclude from '{path}': {error}") from None
    return [line.strip() for line in lines if line.strip()]


def read_training_answers(path: Path) -> list[tuple[str, str]]:
    """Reads questions and answers of a training file (id, image, conversations), the questions as items have them.

    Raises:
        PallavaError: The file cannot be read, or holds no conversation.
    """
    pairs: list[tuple[str, str]] = []
    for record in RecordFile(path):
        conversation = record.value.get("conversations") if isinstance(record.value, dict) else None
        if isinstance(conversation, list):
            turns = turns_from_conversations(conversation)
            pairs += [
                (turn.question.replace(IMAGE_TOKEN, "").strip(), turn.answer.strip()) for turn in turns if turn.answer
            ]
    if not pairs:
        raise PallavaError(f"'{path}' holds no conversation: expected a training file of id, image, conversations")
    return pairs


def _checked(questions: Questions, where: str) -> Questions:
    """Refuses an empty set."""
    if not questions.items:
        raise PallavaError(f"{where} holds no question that can be asked; left out: {questions.left_out or 'nothing'}")
    return questions
