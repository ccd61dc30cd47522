"""Readers of questions: of the public sets, of the user's own, and of training files; and which of them are asked.

Each takes a path, the name of a public set or table ("" for a file or folder of the user's own), and the options. One
file, if a long one, because all readers make the same items and share their checks.
"""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pallava.data.material import read_columns
from pallava.data.sources import SOURCES, Source, open_source
from pallava.data.sources.files import RowDropped, as_sound_object, tidy
from pallava.data.training_file import question_text
from pallava.data.training_row import read_row
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import EvaluateOptions, Item, Kind, Questions, is_texts
from pallava.evaluation.class_sets import known_sets, read_class_set, set_of_labels
from pallava.io.files import walk_files
from pallava.io.records import RecordFile
from pallava.io.texts import read_text
from pallava.prompts import CHOICE_LETTERS, IMAGE_TOKEN, build_choice_question

_CLOSED = ("yes", "no")
_CUSTOM_KINDS = ("open", "closed", "choice")
_EXPECTED = (
    '{"image" ("" for none), "question", "answer"}, and optionally "id", "kind" (open, closed, choice), "choices" and '
    '"group"'
)
_KEYS = ("image", "question", "answer", "id", "kind", "choices", "group")
_CHOICES = re.compile(r"((answer|multiple)[\W_]?)?(option|choice)s?([\W_]?([a-j]|\d))?|candidates?|alternatives|[ab]")
_KINDS: dict[str, Kind] = {"choice": "choice", "yes/no": "closed"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".avif")
_LOGGER = logging.getLogger(__name__)
_TEXT_KEYS = ("caption", "text", "captions")


def read_questions(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read questions, those of a source worded as in training files; its split is test by default, if it has splits."""
    if source not in SOURCES:
        return read_custom(path, options.image_folder)
    data = _open(path, source, "questions", options, default_split="test")
    folder, items = data.root.resolve(), list[Item]()
    for each in data:
        text, kind = question_text(each).strip(), _KINDS.get(each.answer_type, "open")
        items.append(Item(each.id, str(folder / each.image), text, each.answer.strip(), kind, each.options))
    return Questions(items, _dropped(data))


def read_custom(path: Path, image_folder: Path | None = None) -> Questions:
    """Read questions of the user's own, a JSON list or JSONL; paths are relative to `image_folder`, or else the file's.

    An error about a wrong record gives its place.
    """
    items = []
    for record in RecordFile(path):
        try:
            items.append(_custom_item(record.value, record.index, image_folder or path.parent))
        except (PallavaError, RowDropped) as error:
            raise PallavaError(f"'{path}', {record.position}: {error}; expected {_EXPECTED}") from None
    return Questions(items)


def read_labelled(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read a folder of classes (``path/<class>/*.png``) or one of `known_sets`; labels are references and choices.

    Without a class set, the words are those of the public set, or the names of the folders; templates take the place
    of those of the class set. A class that is not in it is an error.
    """
    class_set = read_class_set(options.class_set) if options.class_set else known_sets().get(source)
    if source and source not in known_sets():
        raise PallavaError(f"{source!r} is not a data set with classes; choose {', '.join(known_sets())}")
    if not path.is_dir():
        raise PallavaError(f"'{path}' is not a folder; expected one with a folder for each class, or a public data set")
    if source and source != "nct-crc-he":
        data = _open(path, source, "classes", options, image_policy="each")
        items = [Item(each.id, str(data.root / each.image), "", each.label, "class") for each in data]
        images = Questions(items, _dropped(data))
    else:
        images = _read_folders(path)
    if not images.items:
        expected = f"{path.name}/<class>/image.png"
        raise PallavaError(f"'{path}' must have images {expected}; left out: {images.left_out or 'nothing'}")
    found = sorted({item.reference for item in images.items})
    class_set = class_set or set_of_labels(path.name, found)
    labels = class_set.labels
    if unknown := [label for label in found if label not in labels]:
        raise PallavaError(
            f"the classes {', '.join(unknown)} of '{path}' are not in the class set {class_set.name}, which has "
            f"{', '.join(labels)}; rename the folders, or name the classes by --class-set"
        )
    class_set = class_set.with_templates(options.template) if options.template else class_set
    return Questions([replace(item, choices=labels) for item in images.items], images.left_out, class_set)


def read_pairs(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read records of an image and its caption or captions, each of which is the reference of an item of its own.

    The images of a JSON or JSONL file are in the image folder, by default its own folder.
    """
    if source:
        data = _open(path, source, "captions", options, image_policy="each")
        items = [Item(each.id, str(data.root / each.image), "", each.text, "caption") for each in data]
        pairs = Questions(items, _dropped(data))
    else:
        pairs = _read_records(path, options.image_folder or path.parent)
    if not pairs.items:
        expected = '{"image": "a.png", "caption": "..."}'
        raise PallavaError(f"'{path}' does not have any pair; expected records such as {expected}")
    return pairs


def read_captions(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read pairs as `read_pairs` does, but of each image only the first one."""
    pairs, first = read_pairs(path, source, options), dict[str, Item]()
    for item in pairs.items:
        first.setdefault(item.image, item)
    if further := len(pairs.items) - len(first):
        pairs.left_out["a further caption of an image"] = further
    return Questions(list(first.values()), pairs.left_out)


def read_training_answers(path: Path) -> list[tuple[str, str]]:
    """Read questions and answers of a training file (id, image, conversations), the questions as items have them.

    Raises:
        PallavaError: The file cannot be read, or has no conversation.
    """
    pairs: list[tuple[str, str]] = []
    for record in RecordFile(path):
        with suppress(RowDropped):  # as in training
            for turn in read_row(record.value).turns:
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
        The questions left, with unique ids, which begin with the name of the data set if there are several; and the
        number of those left out by id. It is an error if no excluded id is in the data, or no question is left.
    """
    unwanted = {each.strip() for each in excluded}
    chosen: dict[str, Questions] = {}
    num_excluded = 0
    for name, questions in data.items():
        prefix = f"{name}/" if len(data) > 1 else ""
        ids = _unique([item.id for item in questions.items])
        named = zip(questions.items, ids, strict=True)
        kept = [replace(item, id=prefix + own) for item, own in named if item.id.strip() not in unwanted]
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
    """Return the ids of a text file, one a line, as `pallava data leak` writes them, or raise PallavaError."""
    return [line.strip() for line in read_text(path, "the excluded ids").split("\n") if line.strip()]


def _open(path: Path, name: str, kind: str, options: EvaluateOptions, *, default_split: str = "", **how: Any) -> Any:
    """Open a source of records of some kind; only a table ("csv") takes the columns."""
    reader = SOURCES.get(name, Source)  # an unknown name is refused below
    split = options.split or (default_split if default_split in reader.splits else None)
    columns = read_columns(options.columns) if reader.takes_columns else {}
    source = open_source(name, path, split=split, columns=columns, image_folder=options.image_folder, **how)
    if source.kind != kind:
        raise PallavaError(f"{name} is a set of {source.kind}, but {kind} are needed here")
    return source


def _dropped(source: Source) -> dict[str, int]:
    """Return the counts of the rows that a source has dropped, and log the first of each reason with its place."""
    for reason, examples in source.tally.examples.items():
        _LOGGER.warning("left out as %s: %s", reason, examples[0])
    return source.tally.dropped


def _read_folders(root: Path) -> Questions:
    items, left_out = list[Item](), Counter[str]()
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        for path in walk_files(folder):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                items.append(Item(path.relative_to(root).as_posix(), str(path), "", folder.name, "class"))
            else:
                left_out["not named like an image"] += 1
    return Questions(items, dict(left_out))


def _read_records(path: Path, folder: Path) -> Questions:
    items, left_out, damaged = list[Item](), Counter[str](), ""
    for record in RecordFile(path):
        try:
            value = as_sound_object(record.value if isinstance(record.value, dict) else {})
        except RowDropped as error:
            damaged = damaged or f"damaged text, first in {record.position}: {error}"
            left_out[damaged] += 1
            continue
        image = value.get("image")
        given: Any = next((value[key] for key in _TEXT_KEYS if key in value), [])
        captions = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        texts = [tidy(text) for text in captions if isinstance(text, str) and tidy(text)]
        if texts and isinstance(image, str) and image:
            item_id = str(value.get("id", image))
            items += [Item(item_id, str(folder / image), "", text, "caption") for text in texts]
        else:
            left_out["no image or no caption"] += 1
    return Questions(items, dict(left_out))


def _custom_item(value: Any, index: int, folder: Path) -> Item:
    if not isinstance(value, Mapping):
        raise PallavaError(f"expected a JSON object, got a {type(value).__name__}")
    value = as_sound_object(value)
    _check_keys(value)
    texts = {}
    for key in ("image", "question", "answer"):
        if key not in value:  # with a misspelt "image", the question would be asked without it
            raise PallavaError(f"{key!r} is missing")
        if not isinstance(text := value[key], str):
            raise PallavaError(f"{key!r} must be a text")
        texts[key] = tidy(text.replace(IMAGE_TOKEN, ""))
        if not texts[key] and key != "image":
            raise PallavaError(f"{key!r} is empty")
    question, answer, choices = texts["question"], texts["answer"], value.get("choices") or []
    if not is_texts(choices) or not all(map(tidy, choices)):
        raise PallavaError("'choices' must be a list of texts")
    kind: Any = value.get("kind") or ("choice" if choices else "closed" if _bare(answer) in _CLOSED else "open")
    _check_kind(kind, answer, choices)
    if choices:
        answer = _letter(answer, choices)
        choices = _without_letters(choices)
        question = build_choice_question(question, choices)
    item_id, group = value.get("id", index), value.get("group")
    if not isinstance(item_id, str | int | float) or isinstance(item_id, bool):
        raise PallavaError(f"'id' must be a text or a number, got {json.dumps(item_id)}")
    path = str(folder / texts["image"]) if texts["image"] else ""
    return Item(str(item_id), path, question, answer, kind, tuple(choices), "" if group is None else str(group))


def _check_keys(value: Mapping[str, Any]) -> None:
    """Refuse other names of a key that is missing: without it, another question would be asked."""
    missing = [key for key in _KEYS if not value.get(key)]
    for key in sorted(key for key in value if key not in _KEYS and value[key]):
        name = key.strip().casefold()
        is_choices = "choices" in missing and _CHOICES.fullmatch(name)
        if near := ["choices"] if is_choices else difflib.get_close_matches(name, missing, 1, cutoff=0.85):
            raise PallavaError(f"{key!r} is not a known key; did you mean {near[0]!r}?")


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


def _without_letters(choices: Sequence[str]) -> Sequence[str]:
    """Leave out letters that all choices have before them, such as "A. ": the question has its own."""
    found = [
        re.match(rf"\(?{letter}[).:]\s*(?=\S)", text) for letter, text in zip(CHOICE_LETTERS, choices, strict=False)
    ]
    marks = [mark.end() for mark in found if mark]
    return [text[end:] for text, end in zip(choices, marks, strict=True)] if len(marks) == len(choices) else choices


def _unique(ids: Sequence[str]) -> Iterator[str]:
    """Add a number to ids that come again, such that all ids differ."""
    taken, times = set(ids), Counter[str]()
    for each in ids:
        times[each] += 1
        numbered = (f"{each}~{number}" for number in count(times[each]))
        own = each if times[each] == 1 else next(name for name in numbered if name not in taken)
        taken.add(own)
        yield own
