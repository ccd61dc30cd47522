"""PMC-VQA: multiple-choice questions about figures of articles, versions 1 and 2.

https://huggingface.co/datasets/xmcmic/PMC-VQA (arXiv:2305.10415)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pallava.data.sources.base import Question, Record, Source, SourceFile, register_source
from pallava.data.sources.files import RowDropped, as_object, text_of, tidy
from pallava.io.records import Entry

_LETTERS = "ABCD"

_VERSION_1 = ("train", "test", "test_clean")
_VERSION_2 = ("train_2", "train2", "test_2", "test2")  # the set's own page has both spellings
_FOLDERS_1 = ("images", "images/images", "figures", "figures/figures", "")
_FOLDERS_2 = ("figures", "figures/figures", "images", "images/images", "")
_PREFIX = re.compile(r"([A-D])\s*:\s*")


@register_source
class PMCVQA(Source):
    """The CSV files, or a published evaluation file where there are none; a file's name is its split.

    Without a split: train and test of version 1, or of version 2 where there is no version 1. The two versions ask
    about the same articles, and test_clean is a part of test.
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
        if file.path.suffix != ".csv":
            return [self._from_published(row, file)]
        value = row.value
        question, image = tidy(value["question"]), tidy(value["figure_path"])
        if not question:
            raise RowDropped("empty_question", f"the question about {image!r} is empty")
        choices = [tidy(value[f"choice {letter}"]) for letter in _LETTERS.casefold()]
        options = tuple(_without_letter(choice) for choice in choices)
        if not all(options):
            raise RowDropped("empty_choice", f"a choice of {question!r:.80} is empty")
        label = _label(value, choices, options)
        row_id = f"{file.split}-{row.index:06d}"
        return [Question(self.name, row_id, image, question, label, options, "choice", {"split": file.split})]

    def _from_published(self, row: Entry, file: SourceFile) -> Question:
        value = as_object(row.value)
        question, image, answer = (text_of(value, key) for key in ("question", "image", "answer"))
        if not question:
            raise RowDropped("empty_question", f"the question about {image!r} is empty")
        if answer not in tuple(_LETTERS):
            raise RowDropped("bad_label", f"the answer {answer!r} must be one of {', '.join(_LETTERS)}")
        row_id = str(value.get("qid", f"{file.split}-{row.index:06d}"))
        metadata = {"split": file.split, "options_in_question": True}
        return Question(self.name, row_id, image, question, answer, (), "choice", metadata)


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
