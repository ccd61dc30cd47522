"""Tasks of an evaluation: how each reads its data, words its questions and scores the answers.

A task is one row of `TASKS`; nothing here asks a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pallava.data.material import COLUMNS_HELP, read_columns
from pallava.data.sources import SOURCES
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import AS_IS, SHUFFLED, Answer, AnswerSet, Item, Questions
from pallava.evaluation.answers.questions import read_custom, read_source_questions
from pallava.evaluation.answers.scores import CONTROLS, is_right, score_answers, score_classes
from pallava.evaluation.answers.similarity import score_captions
from pallava.evaluation.examples import CaptionedImages, known_sets, read_captioned, read_class_set, read_labelled
from pallava.evaluation.statistics import as_control
from pallava.prompts import CAPTION_PROMPTS, build_class_question

_FOR_ALL = {"split", "batch_size", "seed", "device"}
_FOR_MODEL = {"limit", "exclude", "max_new_tokens", "consistency", "without_shuffled", "base_llm", "trust_remote_code"}
_FOR_ENCODER = {"model_name", "pretrained"}


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation, each with its help text; None is the default that is given there."""

    split: Annotated[str | None, "split of a public set (default: test for questions, else that of the set)"] = None
    image_folder: Annotated[
        Path | None, "folder of the images that a JSONL or csv=FILE names (default: its own folder)"
    ] = None
    columns: Annotated[str | Mapping[str, str] | None, COLUMNS_HELP] = None
    training: Annotated[Path | None, "training file, whose most frequent answer to each question is a control"] = None
    class_set: Annotated[Path | None, "JSON file with names (and templates) of the classes"] = None
    template: Annotated[
        Sequence[str], "sentence with {} for the class, in place of the class set's, for an encoder (repeatable)"
    ] = ()
    limit: Annotated[int | None, "number of questions to take of each data set (default: all)"] = None
    exclude: Annotated[Path | None, "file of ids to leave out, as `pallava data leak` lists them"] = None
    max_new_tokens: Annotated[int | None, "maximum length of an answer in tokens (default: 32 to 256, by task)"] = None
    consistency: Annotated[bool, "also ask about scaled, turned, flipped and stain-shifted images"] = False
    without_shuffled: Annotated[bool, "leave out the control with other questions' images"] = False
    base_llm: Annotated[
        str | None, "base language model of a folder with an adapter (default: that of its training)"
    ] = None
    trust_remote_code: Annotated[
        bool, "permission to import the module of a connector that does not come with pallava (default: refuse)"
    ] = False
    model_name: Annotated[str | None, "open_clip's name of a checkpoint's model, or a JSON description"] = None
    pretrained: Annotated[str | None, "open_clip's name of the weights of a named model"] = None
    batch_size: Annotated[int | None, "questions (default: 16) or images of an encoder (default: 64) at once"] = None
    seed: Annotated[int, "seed of the bootstrap and of the order of shuffled images (default: 0)"] = 0
    device: Annotated[str, "device: auto (a GPU if available), cpu, cuda, ... (default: auto)"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: Name on the command line.
        help: Help text.
        data: Help text of the data.
        read: From path, name of a public set (or "") and options to the data: `Questions`, or what `measure` takes.
        prompt: From a question as it was read, and all of them, to the text that is put to the model.
        score: From all answers and a seed to the scores; None for a task of encoders alone.
        is_right: Whether an answer is right; None for answers that are only more or less near.
        max_new_tokens: Maximum length of an answer in tokens.
        options: Names of the options that this task has beside those of all tasks.
        measure: From an encoder, its cache, data, batch size and seed to the scores; None for a task of a PA-LLaVA.
        is_named: Whether only data that the user names (NAME=PATH) as a public set or table have splits and columns.
    """

    name: str
    help: str
    data: str
    read: Callable[[Path, str, EvaluateOptions], Any]
    prompt: Callable[[Item, Questions], str] = lambda item, questions: item.question
    score: Callable[[AnswerSet, int], dict[str, Any]] | None = None
    is_right: Callable[[Answer, Questions], bool] | None = None
    max_new_tokens: int = 64
    options: tuple[str, ...] = ()
    measure: Callable[[Any, Any, Any, int, int], dict[str, Any]] | None = None
    is_named: bool = False

    def option_names(self, kind: str = "") -> set[str]:
        """Return the names of all options of the task, or of those for one kind of model: "pallava" or "encoder"."""
        names = {*_FOR_ALL, *self.options}
        if self.score and kind != "encoder":
            names |= _FOR_MODEL
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


def _read_captions(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read captions; the first of each image is its reference."""
    data, first = _read_pairs(path, source, options), dict[Path, Item]()
    for image, caption, item_id in zip(data.images, data.captions, data.ids, strict=True):
        first.setdefault(image, Item(item_id, str(image), "", caption, "caption"))
    left_out = Counter(data.left_out)
    left_out["a further caption of an image"] += len(data.images) - len(first)
    return Questions(list(first.values()), dict(+left_out))


def _read_classes(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read images with classes; the label of each is its reference."""
    class_set = read_class_set(options.class_set) if options.class_set else None
    data = read_labelled(path, source, class_set=class_set, templates=options.template, split=options.split)
    labels = data.class_set.labels
    items = [
        Item(item_id, str(image), "", labels[label], "class", labels)
        for image, label, item_id in zip(data.images, data.labels, data.ids, strict=True)
    ]
    return Questions(items, dict(data.left_out), data)


def _read_pairs(path: Path, source: str, options: EvaluateOptions) -> CaptionedImages:
    columns = read_columns(options.columns)
    return read_captioned(path, source, split=options.split, image_folder=options.image_folder, columns=columns)


def _read_public(path: Path, source: str, options: EvaluateOptions) -> Questions:
    """Read the questions of a source; only "csv" has columns and an image folder."""
    folder = options.image_folder
    return read_source_questions(source, path, options.split, columns=options.columns, image_folder=folder)


def _read_custom(path: Path, source: str, options: EvaluateOptions) -> Questions:
    return _read_public(path, source, options) if source in SOURCES else read_custom(path, options.image_folder)


def _class_prompt(item: Item, questions: Questions) -> str:
    assert questions.labelled is not None
    return build_class_question([names[0] for _, names in questions.labelled.class_set.classes])


def _score_captions(answers: AnswerSet, seed: int) -> dict[str, Any]:
    result, name = score_captions(answers.by_view[AS_IS], seed=seed), "shuffled images"
    if shuffled := answers.by_view.get(SHUFFLED):
        result["controls"][name] = as_control(score_captions(shuffled, seed=seed)["scores"], CONTROLS[name])
    return result


def _measure_classes(encoder: Any, cache: Any, data: Questions, batch_size: int, seed: int) -> dict[str, Any]:
    from pallava.evaluation.encoders import zero_shot

    assert data.labelled is not None
    return zero_shot.evaluate(zero_shot.by_embedding(encoder, cache, batch_size=batch_size), data.labelled, seed=seed)


def _measure_retrieval(encoder: Any, cache: Any, data: Any, batch_size: int, seed: int) -> dict[str, Any]:
    from pallava.evaluation.encoders import retrieval

    return retrieval.evaluate(encoder, data, cache, batch_size=batch_size, seed=seed)


_CAPTIONS = (
    "[NAME=]PATH: JSONL of image and caption, csv=FILE with --columns, or a public set such as quilt-1m=FOLDER "
    "(repeatable)"
)
_QUESTIONS: dict[str, Any] = {"score": score_answers, "is_right": is_right}
_ROWS = (
    Task(
        name="pathvqa",
        help="questions of PathVQA",
        data="folder of PathVQA",
        read=lambda path, source, options: _read_public(path, "path-vqa", options),
        options=("training",),
        **_QUESTIONS,
    ),
    Task(
        name="pmc-vqa",
        help="questions of PMC-VQA",
        data="folder of PMC-VQA",
        read=lambda path, source, options: _read_public(path, "pmc-vqa", options),
        max_new_tokens=32,
        options=("training",),
        **_QUESTIONS,
    ),
    Task(
        name="custom",
        help="questions of your own",
        data="[NAME=]PATH: JSONL of image, question, answer, or csv=FILE with --columns (repeatable)",
        read=_read_custom,
        is_named=True,
        options=("training", "image_folder", "columns"),
        **_QUESTIONS,
    ),
    Task(
        name="caption",
        help="captions of images",
        data=_CAPTIONS,
        read=_read_captions,
        is_named=True,
        prompt=lambda item, questions: CAPTION_PROMPTS[0],
        score=_score_captions,
        max_new_tokens=256,
        options=("image_folder", "columns"),
    ),
    Task(
        name="zero-shot",
        help="classes of images",
        data="[NAME=]FOLDER: folder of classes (FOLDER/<class>/*.png), or a public set: "
        f"{', '.join(known_sets())} (repeatable)",
        read=_read_classes,
        is_named=True,
        prompt=_class_prompt,
        score=score_classes,
        is_right=is_right,
        max_new_tokens=32,
        options=("training", "class_set", "template"),
        measure=_measure_classes,
    ),
    Task(
        name="retrieval",
        help="captions of images, and images of captions, among all",
        data=_CAPTIONS,
        read=_read_pairs,
        is_named=True,
        options=("image_folder", "columns"),
        measure=_measure_retrieval,
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
