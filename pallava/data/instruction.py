"""Questions of several sources as conversations, merged by weights into one training file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.material import Conversation, Records, common_folder
from pallava.data.sources.base import Question, Record
from pallava.errors import PallavaError
from pallava.prompts import IMAGE_TOKEN, build_choice_question, build_question

_EXAMPLES = 3


@dataclass
class SourceCount:
    """What became of one source's records.

    Attributes:
        weight: How often each of its rows was asked for.
        num_records: Records it has, those included that its reader could not use.
        num_questions: Questions that can be trained on.
        num_written: Rows written.
        dropped: Records left out, by reason.
    """

    weight: float = 1.0
    num_records: int = 0
    num_questions: int = 0
    num_written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class Summary:
    """Where the rows of a training file came from.

    Attributes:
        num_written: Rows in the file.
        image_folder: What their image names are relative to.
        sources: Counts of each source.
        examples: The first records left out, by reason.
    """

    num_written: int = 0
    image_folder: str = ""
    sources: dict[str, SourceCount] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Gives the counts and examples as JSON holds them."""
        return asdict(self)


def write_instruction_file(
    materials: Sequence[Records],
    output: str | Path,
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    image_folder: str | Path | None = None,
) -> Summary:
    """Writes the training file of instruction tuning; it appears complete or not at all.

    A weight of 2 takes every row twice, one of 1.5 once and half of them, drawn by the seed, a second time. The
    seed draws the order of the rows, too.

    Args:
        materials: Sources of questions.
        output: The JSONL to write; a file that is there is replaced at the end.
        weights: By name of the source; 1 for those not named.
        seed: Of the draws.
        image_folder: What image names become relative to; default: the deepest folder that holds all roots.

    Returns:
        Counts of what came from where.

    Raises:
        PallavaError: No question is left, a weight is of no source or not above 0, or an image is outside the folder.
    """
    output = Path(output).resolve()
    if output.is_dir():
        raise PallavaError(f"the output '{output}' is a folder; give the name of a file")
    folder = Path(image_folder).resolve() if image_folder else common_folder(materials)
    summary = Summary(image_folder=str(folder))
    rows = _read(materials, folder, summary)
    _set_weights(summary, weights or {})
    chosen = [row for name, questions in rows.items() for row in _choose(questions, name, summary, seed)]
    if not chosen:
        raise PallavaError(f"there is no question to write; left out: {_describe(summary)}")
    random.Random(f"{seed}:order").shuffle(chosen)
    _write(chosen, output)
    summary.num_written = len(chosen)
    return summary


def question_text(question: Question) -> str:
    """What is asked, without image marker: the question, with its options if it has some."""
    text = question.question.replace(IMAGE_TOKEN, "")
    return build_choice_question(text, question.options) if question.options else text


def to_conversation(question: Question) -> list[dict[str, str]]:
    """One question and its answer as LLaVA-style messages; a choice shows its options and is answered by a letter."""
    return [
        {"from": "human", "value": build_question(question_text(question))},
        {"from": "gpt", "value": question.answer.strip()},
    ]


def _read(materials: Sequence[Records], folder: Path, summary: Summary) -> dict[str, list[dict[str, Any]]]:
    """Rows of each source, and the counts of what is no row."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for given in materials:
        if twice := summary.sources.keys() & set(given.names):
            raise PallavaError(f"the source '{min(twice)}' is given twice; a weight of 2 takes its rows twice")
        for record, path in tqdm(given, desc=", ".join(given.names), unit=" records", disable=None):
            count = summary.sources.setdefault(record.source, SourceCount())
            count.num_records += 1
            if reason := _fault(record):
                _drop(summary, record.source, reason, f"{record.source}:{record.id}")
                continue
            assert isinstance(record, Question)
            count.num_questions += 1
            rows.setdefault(record.source, []).append(_row(record, path, folder))
        _add_tally(given, summary)
    return rows


def _fault(record: Record | Conversation) -> str:
    """Why a record cannot be asked, or nothing."""
    if not isinstance(record, Question):
        return "not_a_question"
    if not record.question.strip():
        return "empty_question"
    return "" if record.answer.strip() else "empty_answer"


def _row(question: Question, path: Path, folder: Path) -> dict[str, Any]:
    try:
        image = path.relative_to(folder).as_posix()
    except ValueError:
        raise PallavaError(f"'{path}' is outside the image folder '{folder}'; give a folder that holds it") from None
    return {
        "id": f"{question.source}-{question.id}",
        "image": image,
        "conversations": to_conversation(question),
    }


def _drop(summary: Summary, source: str, reason: str, example: str) -> None:
    dropped = summary.sources[source].dropped
    dropped[reason] = dropped.get(reason, 0) + 1
    examples = summary.examples.setdefault(reason, [])
    if len(examples) < _EXAMPLES:
        examples.append(example)


def _add_tally(given: Records, summary: Summary) -> None:
    """Adds what the reader itself dropped."""
    count = summary.sources.setdefault(given.names[0], SourceCount())
    for reason, number in given.dropped.items():
        count.num_records += number
        count.dropped[reason] = count.dropped.get(reason, 0) + number
        summary.examples.setdefault(reason, given.examples.get(reason, []))


def _set_weights(summary: Summary, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in summary.sources:
            raise PallavaError(f"a weight is given for '{name}'; the sources are {', '.join(summary.sources)}")
        if not 0 < weight < float("inf"):
            raise PallavaError(f"the weight of '{name}' is {weight:g}; expected a number above 0")
        summary.sources[name].weight = weight


def _choose(rows: list[dict[str, Any]], name: str, summary: Summary, seed: int) -> list[dict[str, Any]]:
    """Takes each row as often as its source's weight says; ids stay unique."""
    count = summary.sources[name]
    whole = int(count.weight)
    num_more = round((count.weight - whole) * len(rows))
    more = sorted(random.Random(f"{seed}:{name}").sample(range(len(rows)), num_more))
    rounds = [range(len(rows))] * whole + [more]
    chosen = [
        {**rows[index], "id": f"{rows[index]['id']}-again{repeat}"} if repeat and whole else rows[index]
        for repeat, indices in enumerate(rounds)
        for index in indices
    ]
    count.num_written = len(chosen)
    return chosen


def _write(rows: Iterable[dict[str, Any]], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("xb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def _describe(summary: Summary) -> str:
    reasons = [f"{n} {reason}" for count in summary.sources.values() for reason, n in count.dropped.items()]
    return ", ".join(reasons) or "nothing, the sources are empty"
