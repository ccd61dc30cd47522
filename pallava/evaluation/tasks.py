"""Tasks of an evaluation: how each reads its data, words its questions and scores the answers.

A task is one row of `TASKS`; nothing here asks a model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answer, EvaluateOptions, Item, Questions
from pallava.evaluation.answers.questions import read_captions, read_labelled, read_pairs, read_questions
from pallava.evaluation.answers.scores import is_right, score_classes, score_questions
from pallava.evaluation.answers.similarity import score_captions
from pallava.evaluation.class_sets import known_sets
from pallava.prompts import CAPTION_PROMPTS, build_class_question

_FOR_ALL = {"split", "batch_size", "seed", "device"}
_FOR_MODEL = {"limit", "exclude", "max_new_tokens", "consistency", "without_shuffled"}
_FOR_MODEL |= {"base_llm", "load_in_4bit", "trust_remote_code"}
_FOR_ENCODER = {"model_name", "pretrained", "cache"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, for a PA-LLaVA by its `score`, for encoders by its `measure`, or for both.

    A prompt is made of a question as it was read, and of all of them. `score` takes an `AnswerSet` and ``seed``;
    `measure` an encoder, data, a cache, ``batch_size`` and ``seed``. With `is_named`, only data that the user names
    (NAME=PATH) as a public set or table have splits and columns.
    """

    name: str  # on the command line
    help: str
    data: str  # help text of the data
    read: Callable[[Path, str, EvaluateOptions], Questions]  # from path, name of a public set (or "") and options
    prompt: Callable[[Item, Questions], str] = lambda item, questions: item.question
    score: Callable[..., dict[str, Any]] | None = None
    is_right: Callable[[Answer, Questions], bool] | None = None  # None where answers are only more or less near
    max_new_tokens: int = 64  # maximum length of an answer
    options: tuple[str, ...] = ()  # that this task has beside those of all tasks
    measure: Callable[..., dict[str, Any]] | None = None
    is_named: bool = False

    def option_names(self, kind: str = "") -> set[str]:
        """Return the names of all options of the task, or of those for one kind of model: "pallava" or "encoder"."""
        names = {*_FOR_ALL, *self.options}
        if self.score and kind != "encoder":
            names |= _FOR_MODEL | ({"confidence"} if self.is_right else set())
        if self.measure and kind != "pallava":
            names |= _FOR_ENCODER
        return names - {"pallava": {"template"}, "encoder": {"training"}}.get(kind, set())

    def read_questions(self, path: Path, source: str, options: EvaluateOptions) -> Questions:
        """Read the data and word the questions; `PallavaError` if no question can be asked."""
        questions = self.read(path, source, options)
        if not questions.items:
            left_out = questions.left_out or "nothing"
            raise PallavaError(f"'{path}' must hold at least one question that can be asked; left out: {left_out}")
        items = [replace(item, question=self.prompt(item, questions)) for item in questions.items]
        return replace(questions, items=items)


def _class_prompt(item: Item, questions: Questions) -> str:
    assert questions.class_set
    return build_class_question([names[0] for _, names in questions.class_set.classes])


def _by_embedding(module: str) -> Callable[..., dict[str, Any]]:
    """Return a `measure` of the encoders' package, which is imported when it is first used."""
    package = "pallava.evaluation.encoders"
    return lambda *given, **options: import_module(f"{package}.{module}").evaluate(*given, **options)


_CAPTIONS = (
    "[NAME=]PATH: JSONL of image and caption, csv=FILE with --columns, or a public set such as quilt-1m=FOLDER "
    "(repeatable)"
)
_QUESTIONS: dict[str, Any] = {"score": score_questions, "is_right": is_right}


def _public_questions(name: str, source: str, title: str, **others: Any) -> Task:
    def read(path: Path, _: str, options: EvaluateOptions) -> Questions:
        return read_questions(path, source, options)

    help_text, data = f"questions of {title}", f"folder of {title}"
    return Task(name=name, help=help_text, data=data, read=read, options=("training",), **_QUESTIONS, **others)


_ROWS = (
    _public_questions("pathvqa", "path-vqa", "PathVQA"),
    _public_questions("pmc-vqa", "pmc-vqa", "PMC-VQA", max_new_tokens=32),
    Task(
        name="custom",
        help="questions of your own",
        data="[NAME=]PATH: JSONL of image, question, answer, or csv=FILE with --columns (repeatable)",
        read=read_questions,
        is_named=True,
        options=("training", "image_folder", "columns"),
        **_QUESTIONS,
    ),
    Task(
        name="caption",
        help="captions of images",
        data=_CAPTIONS,
        read=read_captions,
        is_named=True,
        prompt=lambda item, questions: CAPTION_PROMPTS[0],
        score=score_captions,
        max_new_tokens=256,
        options=("image_folder", "columns"),
    ),
    Task(
        name="zero-shot",
        help="classes of images",
        data="[NAME=]FOLDER: folder of classes (FOLDER/<class>/*.png), or a public set: "
        f"{', '.join(known_sets())} (repeatable)",
        read=read_labelled,
        is_named=True,
        prompt=_class_prompt,
        score=score_classes,
        is_right=is_right,
        max_new_tokens=32,
        options=("training", "class_set", "template"),
        measure=_by_embedding("zero_shot"),
    ),
    Task(
        name="retrieval",
        help="captions of images, and images of captions, among all",
        data=_CAPTIONS,
        read=read_pairs,
        is_named=True,
        options=("image_folder", "columns"),
        measure=_by_embedding("retrieval"),
    ),
)
TASKS = {task.name: task for task in _ROWS}
"""Tasks by name."""


def register_task(task: Task) -> Task:
    """Add a task, so that `evaluate` and the command know it by its name.

    Raises:
        PallavaError: The name is taken.
    """
    if task.name in TASKS:
        raise PallavaError(f"the task '{task.name}' is registered already; choose another name")
    TASKS[task.name] = task
    return task
