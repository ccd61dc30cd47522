"""What a PA-LLaVA is asked, and what it said: the records that tasks, runner and scores share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["open", "closed", "choice", "class", "caption"]
"""What the reference is: free words, yes or no, one of lettered choices, one of some classes, or a caption."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask.

    Attributes:
        id: Unique in its task; what a stopped run goes on by.
        image: Path of the picture; empty if there is none.
        question: What is put to the model, without image marker and chat template.
        reference: The right answer: the text of a caption or answer, the letter of a choice, the label of a class.
        kind: What the reference is.
        choices: Texts of the choices A, B, ..., or labels of the classes, in order.
        group: What it is counted with in a table of its own; empty if with nothing.
    """

    id: str
    image: str
    question: str
    reference: str
    kind: Kind = "open"
    choices: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """An item with what a model said; an empty answer is one too, and wrong."""

    item: Item
    answer: str

    def as_record(self) -> dict[str, Any]:
        """One line of ``predictions.jsonl``."""
        return {**asdict(self.item), "choices": list(self.item.choices), "answer": self.answer}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Answered:
        """Reads such a line.

        Raises:
            KeyError: A field is missing.
        """
        values = {name: record[name] for name in ("id", "image", "question", "reference", "kind")}
        item = Item(**values, choices=tuple(record["choices"]), group=record.get("group", ""))
        return cls(item, record["answer"])
