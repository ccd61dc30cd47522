"""PMC-VQA: multiple-choice questions about figures of articles, versions 1 and 2.

https://huggingface.co/datasets/xmcmic/PMC-VQA (arXiv:2305.10415)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pallava.data.sources.base import Part, Question, Record, RowDropped, Source
from pallava.data.sources.files import as_object, csv_rows, keyed_rows, not_found, pick_split, text_of, tidy
from pallava.io.records import Record as Row

LETTERS = "ABCD"

_VERSION_1 = ("train", "test", "test_clean")
_VERSION_2 = ("train_2", "train2", "test_2", "test2")  # the set's own page has both spellings
_FOLDERS_1 = ("images", "images/images", "figures", "figures/figures", "")
_FOLDERS_2 = ("figures", "figures/figures", "images", "images/images", "")
_COLUMNS = ("figure_path", "question", *(f"choice {letter}" for letter in LETTERS.casefold()))
_PREFIX = re.compile(r"([A-D])\s*:\s*")


class PMCVQA(Source):
    """The CSV files, or a published evaluation file where there are none; a file's name is its split.

    Without a split: train and test of version 1, or of version 2 where there is no version 1. The two versions ask
    about the same articles, and test_clean is a part of test.
    """

    name = "pmc-vqa"
    kind = "questions"

    def _find_parts(self) -> list[Part]:
        versions = [(_VERSION_1, _FOLDERS_1), (_VERSION_2, _FOLDERS_2)]
        parts = [
            Part(self.root / f"{split}.csv", split, folders)
            for splits, folders in versions
            for split in splits
            if (self.root / f"{split}.csv").is_file()
        ]
        if not parts or (self.split is not None and all(part.split != self.split for part in parts)):
            paths = [path for path in sorted(self.root.glob("*.json*")) if path.suffix in (".json", ".jsonl")]
            parts += [Part(path, path.stem, _FOLDERS_1) for path in paths]
        if not parts:
            raise not_found(
                self.root, self.name, "train.csv, test.csv, train_2.csv, test_2.csv or a .json of questions"
            )
        return pick_split(parts if self.split else _one_version(parts), self.split, self.root)

    def _rows(self, part: Part) -> Iterator[Row | RowDropped]:
        if part.path.suffix == ".csv":
            return csv_rows(part.path, self._progress, columns=_COLUMNS)
        return keyed_rows(part.path, self._progress)

    def _convert(self, row: Row, part: Part) -> Sequence[Record]:
        convert = self._from_table if part.path.suffix == ".csv" else self._from_published
        return [convert(row, part)]

    def _from_table(self, row: Row, part: Part) -> Question:
        value = row.value
        question, image = tidy(value["question"]), tidy(value["figure_path"])
        if not question:
            raise RowDropped("empty_question", f"the question about {image!r} is empty")
        choices = [tidy(value[f"choice {letter}"]) for letter in LETTERS.casefold()]
        options = tuple(_PREFIX.sub("", choice, count=1) if _PREFIX.match(choice) else choice for choice in choices)
        if not all(options):
            raise RowDropped("empty_choice", f"a choice of {question!r:.80} is empty")
        label = _label(value, choices, options)
        row_id = f"{part.split}-{row.index:06d}"
        return Question(self.name, row_id, image, question, label, options, "choice", {"split": part.split})

    def _from_published(self, row: Row, part: Part) -> Question:
        value = as_object(row.value)
        question, image, answer = (text_of(value, key) for key in ("question", "image", "answer"))
        if not question:
            raise RowDropped("empty_question", f"the question about {image!r} is empty")
        if answer not in (*LETTERS,):
            raise RowDropped("bad_label", f"the answer {answer!r} is none of {', '.join(LETTERS)}")
        row_id = str(value.get("qid", f"{part.split}-{row.index:06d}"))
        metadata = {"split": part.split, "options_in_question": True}
        return Question(self.name, row_id, image, question, answer, (), "choice", metadata)


def _one_version(parts: Sequence[Part]) -> list[Part]:
    splits = {part.split for part in parts}
    unwanted = set(_VERSION_2) if splits & set(_VERSION_1) else set()
    unwanted |= {"test_clean"} if "test" in splits else set()
    return [part for part in parts if part.split not in unwanted]


def _label(value: Mapping[str, str], choices: Sequence[str], options: Sequence[str]) -> str:
    """Gives the letter of the right choice, from the label or else from the answer's text.

    Raises:
        RowDropped: The label is bad, or names several choices, and not exactly one choice equals the answer.
    """
    # Version 1 holds the answer's text and a label, version 2 the letter alone; very old copies misspell the column.
    answer = tidy(value.get("answer", value.get("anwser", "")))
    label = tidy(value.get("answer_label", answer))
    if _is_trusted(label, choices):
        return label
    text = _PREFIX.sub("", answer, count=1) if _PREFIX.match(answer) else answer
    equal = [letter for letter, option in zip(LETTERS, options, strict=True) if option == text]
    if len(equal) != 1:
        what = f"{len(equal)} choices equal the answer {answer!r:.80}"
        raise RowDropped("bad_label", f"the label {label!r} names no one choice, and {what}")
    return equal[0]


def _is_trusted(label: str, choices: Sequence[str]) -> bool:
    """Whether the label is a letter, and the letters that the choices carry agree on which one it names."""
    if label not in (*LETTERS,):
        return False
    letters = [match[1] if (match := _PREFIX.match(choice)) else None for choice in choices]
    own = letters[LETTERS.index(label)]
    return own in (label, None) and letters.count(label) == (own is not None)
