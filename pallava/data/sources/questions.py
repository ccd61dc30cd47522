"""Sets of questions about pictures: PathVQA and PMC-VQA, in every form that they are passed around in."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pallava.data.sources.base import Question, Record, Source, SourceFile, register_source
from pallava.data.sources.files import (
    RowDropped,
    answer_type,
    as_object,
    question_and_answer,
    save_image,
    text_of,
    texts_of,
    tidy,
)
from pallava.errors import PallavaError
from pallava.io.pickles import load_plain
from pallava.io.records import Entry

_SPLITS = ("train", "val", "test")
_NAME = re.compile(rf"({'|'.join(_SPLITS)})_\d+")
# {split} is the one that an image's name begins with.
_FOLDERS = ("images/{split}", "images", "images/images/{split}", "{split}", "")
_TYPES = {"closed": "yes/no", "open": "other", "yes/no": "yes/no", "number": "number", "other": "other"}

_LETTERS = "ABCD"
_VERSION_1 = ("train", "test", "test_clean")
_VERSION_2 = ("train_2", "train2", "test_2", "test2")  # the set's own page has both spellings
_FOLDERS_1 = ("images", "images/images", "figures", "figures/figures", "")
_FOLDERS_2 = ("figures", "figures/figures", "images", "images/images", "")
_PREFIX = re.compile(r"([A-D])\s*:\s*")


@register_source
class PathVQA(Source):
    """Pictures from textbooks: the pickles of questions, or else those of triples, then parquet, then JSON.

    https://github.com/UCSD-AI4H/PathVQA (arXiv:2003.10286)
    """

    name = "path-vqa"
    kind = "questions"
    layout = "qas/train_vqa.pkl, qas/train/train_qa.pkl, train-*.parquet or a .json of its questions"
    splits = _SPLITS
    has_keys = True

    def find_files(self) -> list[SourceFile]:
        self.split = "val" if self.split in ("valid", "validation") else self.split
        return (
            self._existing("qas/{0}_vqa.pkl", "{0}_vqa.pkl", "qas/{0}/{0}_vqa.pkl")
            or self._existing("qas/{0}/{0}_qa.pkl", "{0}/{0}_qa.pkl", "qas/{0}_qa.pkl")
            or self._parquet()
            or self._json()
        )

    def _existing(self, *patterns: str) -> list[SourceFile]:
        files = []
        for split in _SPLITS:
            paths = (self.root / pattern.format(split) for pattern in patterns)
            files += [SourceFile(path, split, _FOLDERS) for path in paths if path.is_file()][:1]
        return files

    def _parquet(self) -> list[SourceFile]:
        names = {"train": "train", "val": "val*", "test": "test"}
        return [
            SourceFile(path, split)
            for split, name in names.items()
            for path in sorted([*self.root.glob(f"{name}-*.parquet"), *self.root.glob(f"data/{name}-*.parquet")])
        ]

    def _json(self) -> list[SourceFile]:
        patterns = ("*.json", "*.jsonl", "qas/*.json", "qas/*.jsonl")
        paths = sorted(path for pattern in patterns for path in self.root.glob(pattern))
        return [SourceFile(path, _split_of(path.stem), _FOLDERS) for path in paths]

    def __iter__(self) -> Iterator[Record]:
        """Yield every question; each image of a parquet file is written below images/ at its first question."""
        self._num_of_id: Counter[str] = Counter()
        return super().__iter__()

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        if file.path.suffix != ".pkl":
            return super().read_rows(file)
        rows = load_plain(file.path)
        if not isinstance(rows, list):
            raise PallavaError(f"'{file.path}' must be a pickle of a list of questions, got a {type(rows).__name__}")
        self.report_progress(file.path.stat().st_size)
        return (Entry(index, f"row {index + 1}", value) for index, value in enumerate(rows))

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = as_object(row.value)
        turns = _turns(value)
        question_id = next((value[name] for name in ("question_id", "qid", "id") if value.get(name)), None)
        if not isinstance(question_id, str | int):
            question_id = f"{file.split or file.path.stem}-{row.index:06d}"
        image = self._image(value, file)
        metadata = {"split": file.split} | texts_of(value, "question_type")
        stated = _TYPES.get(texts_of(value, "answer_type").get("answer_type", "").strip().casefold())
        questions = []
        for number, (question, answer) in enumerate(turns):
            row_id = self._unique(f"{question_id}" if len(turns) == 1 else f"{question_id}-{number}")
            kind = stated or answer_type(answer)
            questions.append(Question(self.name, row_id, image, question, answer, (), kind, metadata))
        return questions

    def _image(self, value: dict[str, Any], file: SourceFile) -> str:
        if file.path.suffix == ".parquet":
            return save_image(value.get("image"), self.root, f"images/{file.split}")
        name = text_of(value, "img_id", "image_name", "image")
        if _NAME.fullmatch(PurePosixPath(name).stem) and ".." not in name and not name.startswith("/"):
            name = PurePosixPath(name).name  # the folder follows from the name
        return name if PurePosixPath(name).suffix else f"{name}.jpg"

    def place(self, folder: str, image: str) -> str:
        match = _NAME.match(image)
        return super().place(folder.format(split=match[1] if match else ""), image)

    def _unique(self, question_id: str) -> str:
        self._num_of_id[question_id] += 1
        count = self._num_of_id[question_id]
        return question_id if count == 1 else f"{question_id}~{count}"


def _split_of(stem: str) -> str:
    words = re.split(r"[^a-z]+", stem.casefold().replace("validation", "val").replace("valid", "val"))
    return next((split for split in _SPLITS if split in words), stem)


def _turns(value: dict[str, Any]) -> list[tuple[str, str]]:
    conversation = value.get("conversations", value.get("conversatons"))  # misspelt in LLaVA-Med's older file
    if conversation is None:
        return [question_and_answer(text_of(value, "question", "sent"), _answer(value))]
    is_list = isinstance(conversation, list) and len(conversation) >= 2 and len(conversation) % 2 == 0
    if not is_list or not all(isinstance(turn, dict) for turn in conversation):
        raise RowDropped("malformed", "a conversation must be a list of questions and answers in turn")
    texts = [text_of(turn, "value").replace("<image>", "").strip() for turn in conversation]
    return [question_and_answer(*turn) for turn in zip(texts[::2], texts[1::2], strict=True)]


def _answer(value: dict[str, Any]) -> str:
    if "answer" in value or "label" not in value:
        return text_of(value, "answer")
    label = value["label"]
    if not isinstance(label, dict):
        raise RowDropped("malformed", f"'label' must be a dict of answers, got {type(label).__name__}")
    return text_of({"label": next(iter(label), "")}, "label")


@register_source
class PMCVQA(Source):
    """Multiple choice about figures: the CSV files, or else a published evaluation file; a file's name is its split.

    Without a split: train and test of version 1, or of version 2 where there is no version 1. The two versions ask
    about the same articles, and test_clean is a part of test.
    https://huggingface.co/datasets/xmcmic/PMC-VQA (arXiv:2305.10415)
    """

    name = "pmc-vqa"
    kind = "questions"
    layout = "train.csv, test.csv, train_2.csv, test_2.csv or a .json of questions"
    splits = _VERSION_1
    has_keys = True
    needs = ("figure_path", "question", "choice a", "choice b", "choice c", "choice d")

    def find_files(self) -> list[SourceFile]:
        folders = dict.fromkeys(_VERSION_1, _FOLDERS_1) | dict.fromkeys(_VERSION_2, _FOLDERS_2)
        tables = [SourceFile(self.root / f"{split}.csv", split, folders[split]) for split in folders]
        files = [file for file in tables if file.path.is_file()]
        splits = {file.split for file in files}
        if not files or (self.split is not None and self.split not in splits):
            paths = sorted([*self.root.glob("*.json"), *self.root.glob("*.jsonl")])
            files += [SourceFile(path, path.stem, _FOLDERS_1) for path in paths]
        if self.split:
            return files
        unwanted = [*(_VERSION_2 if splits & set(_VERSION_1) else ()), *(["test_clean"] if "test" in splits else ())]
        return [file for file in files if file.split not in unwanted]

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        is_table = file.path.suffix == ".csv"
        value, row_id = as_object(row.value), f"{file.split}-{row.index:06d}"
        question, image = text_of(value, "question"), text_of(value, "figure_path" if is_table else "image")
        answer = "" if is_table else text_of(value, "answer")
        if not question:
            raise RowDropped("empty_question", f"the question about {image!r} is empty")
        if is_table:
            answer, options = _answer_and_options(value, question)
            return [Question(self.name, row_id, image, question, answer, options, "choice", {"split": file.split})]
        if answer not in tuple(_LETTERS):
            raise RowDropped("bad_label", f"the answer {answer!r} must be one of {', '.join(_LETTERS)}")
        metadata = {"split": file.split, "options_in_question": True}
        return [Question(self.name, str(value.get("qid", row_id)), image, question, answer, (), "choice", metadata)]


def _answer_and_options(value: Mapping[str, str], question: str) -> tuple[str, tuple[str, ...]]:
    choices = [tidy(value[f"choice {letter}"]) for letter in _LETTERS.casefold()]
    options = tuple(map(_without_letter, choices))
    if not all(options):
        raise RowDropped("empty_choice", f"a choice of {question!r:.80} is empty")
    return _label(value, choices, options), options


def _label(value: Mapping[str, str], choices: Sequence[str], options: Sequence[str]) -> str:
    """Return the letter of the right choice, from the label or else from the text of the answer."""
    # Version 1 holds the answer's text and a label, version 2 the letter alone; very old copies misspell the column.
    answer = tidy(value.get("answer", value.get("anwser", "")))
    label = tidy(value.get("answer_label", answer))
    if _is_trusted(label, choices):
        return label
    equal = [letter for letter, option in zip(_LETTERS, options, strict=True) if option == _without_letter(answer)]
    if len(equal) != 1:
        what = f"{len(equal)} choices equal the answer {answer!r:.80}"
        raise RowDropped("bad_label", f"the label {label!r} does not name one choice, and {what}")
    return equal[0]


def _is_trusted(label: str, choices: Sequence[str]) -> bool:
    """Return whether the label is a letter, and the letters that the choices carry agree on which one it names."""
    if label not in tuple(_LETTERS):
        return False
    letters = [match[1] if (match := _PREFIX.match(choice)) else None for choice in choices]
    own = letters[_LETTERS.index(label)]
    return own in (label, None) and letters.count(label) == (own is not None)


def _without_letter(choice: str) -> str:
    return choice[match.end() :] if (match := _PREFIX.match(choice)) else choice
