"""Questions about images and the answers of a PA-LLaVA: the records that readers, runner and scores share.

An image with a class or a caption, which an encoder takes without a question, is the same record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pallava.data.material import COLUMNS_HELP
from pallava.errors import PallavaError
from pallava.evaluation.class_sets import ClassSet
from pallava.io.records import RecordFile
from pallava.io.texts import find_damage
from pallava.judging.prompts import final_answer

Kind = Literal["open", "closed", "choice", "class", "caption"]
"""Kind of a reference: free words, yes or no, one of lettered choices, one of some classes, or a caption."""

AS_IS, SHUFFLED = "", "shuffled"
"""Names of the views of images as they are, and of other questions' images."""

_TEXTS = ("id", "image", "question", "reference", "kind", "answer")


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Its reference is the right answer: the text of a caption or answer, the letter of a choice, the label of a class.
    """

    id: str  # unique in its task; a stopped run resumes by it
    image: str  # path of the picture; empty without one
    question: str  # text that is put to the model, without image marker and chat template
    reference: str
    kind: Kind = "open"  # of the reference
    choices: tuple[str, ...] = ()  # texts of the choices A, B, ..., or labels of the classes, in order
    group: str = ""  # that it is counted with in a table of its own; empty for none


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with the text that a model answered; an empty one is an answer too, and wrong."""

    item: Item
    text: str
    probability: float | None = None  # None if it was not asked for
    num_possible: int = 0  # answers that share the probability; 0 for the geometric mean of the tokens' probabilities

    @property
    def final(self) -> str:
        """Return the part of the text that is judged, without thoughts and end tokens."""
        return final_answer(self.text)

    def as_record(self) -> dict[str, Any]:
        """Return one line of ``predictions.jsonl``."""
        record = {**asdict(self.item), "choices": list(self.item.choices), "answer": self.text}
        if self.probability is not None:
            record |= {"probability": self.probability, "num_possible": self.num_possible}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Answer":
        """Return the answer that such a line holds."""
        values = {name: record[name] for name in _TEXTS if name != "answer"}
        item = Item(**values, choices=tuple(record["choices"]), group=record.get("group", ""))
        return cls(item, record["answer"], record.get("probability"), record.get("num_possible", 0))


@dataclass
class Questions:
    """Questions of one data set."""

    items: list[Item]
    left_out: dict[str, int] = field(default_factory=dict)  # counts of records, by reason
    class_set: ClassSet | None = None  # the classes in words, if they are about classes
    training: Sequence[tuple[str, str]] = ()  # questions and answers of the training material, for a control


@dataclass(frozen=True)
class AnswerSet:
    """All answers of a model to the questions of one data set."""

    by_view: Mapping[str, Sequence[Answer]]  # by the name of the view, in the order of the questions
    questions: Questions = field(default_factory=lambda: Questions([]))
    problems: Mapping[str, str] = field(default_factory=dict)  # by image that cannot be opened, the reason

    @property
    def as_is(self) -> Sequence[Answer]:
        """Return the answers about images as they are."""
        return self.by_view[AS_IS]

    @property
    def shuffled(self) -> Sequence[Answer]:
        """Return the answers about other questions' images; none if they were not asked for."""
        return self.by_view.get(SHUFFLED, ())


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation, each with its help text; None is the default that is given there."""

    split: Annotated[str | None, "split of a public set (default: test for questions, else that of the set)"] = None
    image_folder: Annotated[
        Path | None, "folder of the images that a JSONL or csv=FILE names (default: its own folder)"
    ] = None
    columns: Annotated[str | Mapping[str, str] | None, COLUMNS_HELP, {"metavar": "KEY=COLUMN,..."}] = None
    training: Annotated[Path | None, "training file, whose most frequent answer to each question is a control"] = None
    class_set: Annotated[Path | None, "JSON file with names (and templates) of the classes"] = None
    template: Annotated[
        Sequence[str], "sentence with {} for the class, in place of the class set's, for an encoder (repeatable)"
    ] = ()
    limit: Annotated[int | None, "number of questions to take of each data set (default: all)"] = None
    exclude: Annotated[Path | None, "file of ids to leave out, as `pallava data leak` lists them"] = None
    max_new_tokens: Annotated[int | None, "maximum length of an answer in tokens (default: 32 to 256, by task)"] = None
    consistency: Annotated[bool, "also ask about scaled, turned, flipped and stain-shifted images"] = False
    confidence: Annotated[
        bool, "also weigh each answer: its probability, calibration, and thresholds for a wanted accuracy"
    ] = False
    without_shuffled: Annotated[bool, "leave out the control with other questions' images"] = False
    base_llm: Annotated[
        str | None, "base language model of a folder with an adapter (default: that of its training)"
    ] = None
    load_in_4bit: Annotated[bool, "language model in 4 bit: a quarter of the memory, other answers; slow on a CPU"] = (
        False
    )
    trust_remote_code: Annotated[
        bool, "permission to import the module of a connector that does not come with pallava (default: refuse)"
    ] = False
    model_name: Annotated[str | None, "open_clip's name of a checkpoint's model, or a JSON description"] = None
    pretrained: Annotated[str | None, "open_clip's name of the weights of a named model"] = None
    cache: Annotated[Path | None, "folder of an encoder's embeddings (default: below PALLAVA_CACHE or ~/.cache)"] = None
    batch_size: Annotated[int | None, "questions (default: 16) or images of an encoder (default: 64) at once"] = None
    seed: Annotated[int, "seed of the bootstrap and of the order of shuffled images (default: 0)"] = 0
    device: Annotated[str, "device: auto (a GPU if available), cpu, cuda, ... (default: auto)"] = "auto"


def read_predictions(path: Path) -> list[Answer]:
    """Return all answers of a ``predictions.jsonl`` of `pallava evaluate`, or of that in a folder, in order.

    Raises:
        PallavaError: The file cannot be read, is empty, holds something else, or holds an id twice.
    """
    path = path / "predictions.jsonl" if path.is_dir() else path
    answers: dict[str, Answer] = {}
    for record in RecordFile(path):
        problem = _problem(record.value)
        if not problem and record.value["id"] in answers:
            problem = f"the id '{record.value['id']}' occurs a second time"
        if problem:
            raise PallavaError(
                f"'{path}', {record.position}: {problem}; expected a line of the predictions.jsonl that "
                "`pallava evaluate` writes"
            )
        answers[record.value["id"]] = Answer.from_record(record.value)
    return list(answers.values())


def _problem(record: Any) -> str:
    if not isinstance(record, dict):
        return f"expected a JSON object, got a {type(record).__name__}"
    if missing := [name for name in (*_TEXTS, "choices") if name not in record]:
        return f"the key '{missing[0]}' is missing"
    wrong = [
        name for name in _TEXTS if not isinstance(text := record[name], str) or find_damage(text.replace("\0", ""))
    ]
    if wrong:  # a model can answer with a NUL
        return f"'{wrong[0]}' must be a text"
    if not is_texts(record["choices"]):
        return "'choices' must be a list of texts"
    if record["kind"] not in get_args(Kind):
        return f"the kind '{record['kind']}' is not known"
    probability, num_possible = record.get("probability"), record.get("num_possible", 0)
    if probability is not None and not (type(probability) in (int, float) and 0 <= probability <= 1):
        return f"'probability' must be a number from 0 to 1, got {str(probability)[:40]}"
    is_count = type(num_possible) is int and num_possible >= 0
    return "" if is_count else f"'num_possible' must be a count, got {str(num_possible)[:40]}"


def is_texts(value: Any) -> bool:
    """Return whether a JSON value is a list of texts."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
