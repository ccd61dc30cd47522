"""PathVQA: questions about pictures from textbooks and the PEIR library, in every form it is passed around in.

https://github.com/UCSD-AI4H/PathVQA (arXiv:2003.10286)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from pallava.data.sources.base import Part, Question, Record, RowDropped, Source
from pallava.data.sources.files import as_object, keyed_rows, not_found, pick_split, text_of
from pallava.data.sources.images_in_parquet import ImageWriter, parquet_rows
from pallava.errors import PallavaError
from pallava.io.pickles import load_plain
from pallava.io.records import Record as Row

SPLITS = ("train", "val", "test")

_NAME = re.compile(rf"({'|'.join(SPLITS)})_\d+")
# {split} is the one that an image's name begins with.
_FOLDERS = ("images/{split}", "images", "images/images/{split}", "{split}", "")
_LOOKED_FOR = "qas/train_vqa.pkl, qas/train/train_qa.pkl, train-*.parquet or a .json of its questions"
_CLOSED = ("yes", "no")
_TYPES = {"closed": "yes/no", "open": "other"}


class PathVQA(Source):
    """The pickles of questions; where there are none those of triples, then parquet, then JSON."""

    name = "path-vqa"
    kind = "questions"

    def _find_parts(self) -> list[Part]:
        for find in (self._pickles, self._triples, self._parquet, self._json):
            if parts := find():
                split = {"valid": "val", "validation": "val"}.get(self.split or "", self.split)
                return pick_split(parts, split, self.root)
        raise not_found(self.root, self.name, _LOOKED_FOR)

    def _pickles(self) -> list[Part]:
        return self._existing("qas/{0}_vqa.pkl", "{0}_vqa.pkl", "qas/{0}/{0}_vqa.pkl")

    def _triples(self) -> list[Part]:
        return self._existing("qas/{0}/{0}_qa.pkl", "{0}/{0}_qa.pkl", "qas/{0}_qa.pkl")

    def _existing(self, *patterns: str) -> list[Part]:
        found = [[self.root / pattern.format(split) for pattern in patterns] for split in SPLITS]
        paths = [next((path for path in paths if path.is_file()), None) for paths in found]
        return [Part(path, split, _FOLDERS) for path, split in zip(paths, SPLITS, strict=True) if path]

    def _parquet(self) -> list[Part]:
        names = {"train": "train", "val": "val*", "test": "test"}
        return [
            Part(path, split)
            for split, name in names.items()
            for path in sorted([*self.root.glob(f"{name}-*.parquet"), *self.root.glob(f"data/{name}-*.parquet")])
        ]

    def _json(self) -> list[Part]:
        paths = [path for folder in (self.root, self.root / "qas") for path in folder.glob("*.json*")]
        paths = [path for path in sorted(paths) if path.suffix in (".json", ".jsonl")]
        return [Part(path, _split_of(path.stem), _FOLDERS) for path in paths]

    def __iter__(self) -> Iterator[Record]:
        """Yields every question; of parquet files each picture is written below images/ when it is first met."""
        self._num_of_id: dict[str, int] = {}
        self._images = ImageWriter(self.root)
        return super().__iter__()

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        if part.path.suffix == ".parquet":
            return parquet_rows(part.path, self._progress)
        if part.path.suffix == ".pkl":
            return self._pickle_rows(part)
        return keyed_rows(part.path, self._progress)

    def _pickle_rows(self, part: Part) -> Iterator[Row]:
        rows = load_plain(part.path)
        if not isinstance(rows, list):
            raise PallavaError(f"'{part.path}' is a pickle of a {type(rows).__name__}; expected a list of questions")
        self._progress(part.path.stat().st_size)
        return (Row(index, f"row {index + 1}", value) for index, value in enumerate(rows))

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        value = as_object(row.value)
        turns = _turns(value)
        question_id = next((value[name] for name in ("question_id", "qid", "id") if value.get(name)), None)
        if not isinstance(question_id, str | int):
            question_id = f"{part.split or part.path.stem}-{row.index:06d}"
        image = self._image(value, part)
        ids = [f"{question_id}" if len(turns) == 1 else f"{question_id}-{number}" for number in range(len(turns))]
        metadata = {"split": part.split} | _known(value, "question_type")
        return [
            Question(self.name, self._unique(i), image, q, a, answer_type=_answer_type(value, a), metadata=metadata)
            for i, (q, a) in zip(ids, turns, strict=True)
        ]

    def _image(self, value: dict[str, Any], part: Part) -> str:
        if part.path.suffix == ".parquet":
            return self._images.write(value.get("image"), f"images/{part.split}")
        name = text_of(value, "img_id", "image_name", "image")
        if _NAME.fullmatch(PurePosixPath(name).stem) and ".." not in name and not name.startswith("/"):
            name = PurePosixPath(name).name  # the folder follows from the name
        return name if PurePosixPath(name).suffix else f"{name}.jpg"

    def _place(self, folder: str, image: str) -> str:
        match = _NAME.match(image)
        return super()._place(folder.format(split=match[1] if match else ""), image)

    def _unique(self, question_id: str) -> str:
        """Numbers an id that comes again."""
        count = self._num_of_id[question_id] = self._num_of_id.get(question_id, 0) + 1
        return question_id if count == 1 else f"{question_id}~{count}"


def _split_of(stem: str) -> str:
    words = re.split(r"[^a-z]+", stem.casefold().replace("validation", "val").replace("valid", "val"))
    return next((split for split in SPLITS if split in words), stem)


def _turns(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Gives questions and answers of a row.

    Raises:
        RowDropped: The row has none, or one is empty.
    """
    conversation = value.get("conversations", value.get("conversatons"))  # misspelt in LLaVA-Med's older file
    if conversation is None:
        turns = [(text_of(value, "question", "sent"), _answer(value))]
    else:
        turns = _conversation_turns(conversation)
    for question, answer in turns:
        if not question:
            raise RowDropped("empty_question", "the question is empty")
        if not answer:
            raise RowDropped("empty_answer", f"the answer to {question!r:.80} is empty")
    return turns


def _conversation_turns(conversation: Any) -> list[tuple[str, str]]:
    is_list = isinstance(conversation, list) and len(conversation) >= 2 and len(conversation) % 2 == 0
    if not is_list or not all(isinstance(turn, dict) for turn in conversation):
        raise RowDropped("malformed", "a conversation is a list of questions and answers in turn")
    texts = [text_of(turn, "value").replace("<image>", "").strip() for turn in conversation]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _answer(value: dict[str, Any]) -> str:
    if "answer" in value or "label" not in value:
        return text_of(value, "answer")
    label = value["label"]
    if not isinstance(label, dict):
        raise RowDropped("malformed", f"'label' is a dict of answers, not {type(label).__name__}")
    return text_of({"label": next(iter(label), "")}, "label")


def _answer_type(value: dict[str, Any], answer: str) -> str:
    stated = value.get("answer_type")
    stated = stated.strip().casefold() if isinstance(stated, str) else ""  # as text, shared lists may have no end
    if stated in ("yes/no", "number", "other"):
        return stated
    return _TYPES.get(stated) or ("yes/no" if answer.casefold() in _CLOSED else "other")


def _known(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value[key] for key in keys if isinstance(value.get(key), str)}
