"""The whole examination of a PA-LLaVA in one task: what is asked of it, in which views, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pallava.evaluation.answers.caption_scores import score_captions
from pallava.evaluation.answers.consistency import IsRight, score_consistency, share_by_group
from pallava.evaluation.answers.generation import Answerer, ask_all
from pallava.evaluation.answers.items import Answered
from pallava.evaluation.answers.options import class_names, read_choice, read_class
from pallava.evaluation.answers.processes import Processes
from pallava.evaluation.answers.rules import is_exact_match
from pallava.evaluation.answers.scores import CONTROLS, read_classes, score_questions, training_answer
from pallava.evaluation.answers.store import AnswerStore
from pallava.evaluation.encoders import zero_shot
from pallava.evaluation.encoders.embeddings import count_reasons
from pallava.evaluation.examples import LabelledImages
from pallava.evaluation.statistics import Predictions
from pallava.evaluation.tasks import Questions
from pallava.evaluation.views import AS_IS, SHUFFLED, UNCHANGED_MEANING, View, shuffle_images

_NOT_TRAINED = "question that the training material does not ask: it gives no control"


@dataclass(frozen=True)
class Plan:
    """How a model is examined.

    Attributes:
        batch_size: Questions at once.
        is_shuffled: Whether each question is also asked on another one's image, as a control.
        is_consistency: Whether it is also asked on images changed in ways that mean nothing.
        training: Questions and answers of the training material, for the most frequent answer as a control.
        seed: Of the bootstrap, and of which image takes whose place.
    """

    batch_size: int = 16
    is_shuffled: bool = True
    is_consistency: bool = False
    training: Sequence[tuple[str, str]] = ()
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """What a model said of one data set.

    Attributes:
        questions: What was asked.
        by_view: By the name of the view, in the order of the questions: as they are, shuffled, changed.
        problems: Of each image that cannot be opened, the reason.
    """

    questions: Questions
    by_view: Mapping[str, list[Answered]]
    problems: Mapping[str, str]


def ask(answerer: Answerer, questions: Questions, plan: Plan, store: AnswerStore, processes: Processes) -> Answers:
    """Asks everything that the plan wants to know; what the store has already is not asked again.

    Raises:
        PallavaError: As `pallava.evaluation.answers.generation.ask_all` says.
    """
    items = questions.items
    asked = {AS_IS: (items, View())}
    if plan.is_shuffled and (others := shuffle_images(items, plan.seed)):
        asked[SHUFFLED] = others, View(SHUFFLED)
    if plan.is_consistency:
        with_image = [item for item in items if item.image]
        asked |= {view.name: (with_image, view) for view in UNCHANGED_MEANING if with_image}
    by_view: dict[str, list[Answered]] = {}
    problems: dict[str, str] = {}
    for name, (chosen, view) in asked.items():
        by_view[name], found = ask_all(
            answerer, chosen, store, view=view, batch_size=plan.batch_size, processes=processes
        )
        problems |= found
    return Answers(questions, by_view, problems)


def score(task: str, answers: Answers, plan: Plan) -> dict[str, Any]:
    """Scores beside their controls, groups and consistency; what could not be asked is told.

    A question whose image cannot be opened counts as unanswered; an image without a class to be found is left out, as
    it is where an encoder is asked.
    """
    scored = _SCORERS[task](answers, plan) if task in _SCORERS else _score_questions(answers, plan)
    result = {"left_out": dict(answers.questions.left_out), "problems": {}, **scored}
    if task != "zero-shot":
        reasons = count_reasons(answers.problems)
        result["problems"] = {f"{reason}: its questions count as unanswered": n for reason, n in reasons.items()}
    rule = right_rule(task, answers.questions)
    if rule is not None:
        result["groups"] = share_by_group(answers.by_view[AS_IS], rule, seed=plan.seed)
    if plan.is_consistency:
        changed = {name: each for name, each in answers.by_view.items() if name not in (AS_IS, SHUFFLED)}
        result["consistency"] = score_consistency(
            answers.by_view[AS_IS], changed, rule, unopened=answers.problems, seed=plan.seed
        )
    return result


def right_rule(task: str, questions: Questions) -> IsRight | None:
    """What makes an answer right; None of captions, which are more or less near.

    A choice and a class are read as a careful reader would; other answers are right if they equal the reference but
    for case, spaces and a full stop.
    """
    if task == "caption":
        return None
    class_set = questions.labelled.class_set if questions.labelled else None

    def is_right(each: Answered) -> bool:
        item = each.item
        if item.kind == "choice":
            return read_choice(each.answer, item.choices) == item.reference.upper()
        if item.kind == "class":
            number = read_class(each.answer, class_names(item.choices, class_set))
            return number is not None and item.choices[number] == item.reference
        return is_exact_match(each.answer, item.reference)

    return is_right


def by_generation(answers: Answers) -> zero_shot.Runner:
    """The runner of a model that has answered already."""

    def run(data: LabelledImages) -> tuple[Predictions, dict[str, int]]:
        return _read_classes(answers, answers.by_view[AS_IS]), count_reasons(answers.problems)

    return run


def _score_questions(answers: Answers, plan: Plan) -> dict[str, Any]:
    shuffled = answers.by_view.get(SHUFFLED, [])
    return score_questions(answers.by_view[AS_IS], training=plan.training, shuffled=shuffled, seed=plan.seed)


def _score_captions(answers: Answers, plan: Plan) -> dict[str, Any]:
    result = score_captions(answers.by_view[AS_IS], seed=plan.seed)
    if shuffled := answers.by_view.get(SHUFFLED):
        scores = score_captions(shuffled, seed=plan.seed)["scores"]
        result["controls"]["shuffled images"] = {
            name: {**each, "definition": f"{each['definition']}; {CONTROLS['shuffled images']}"}
            for name, each in scores.items()
        }
    return result


def _score_classes(answers: Answers, plan: Plan) -> dict[str, Any]:
    assert answers.questions.labelled is not None
    result = zero_shot.evaluate(by_generation(answers), answers.questions.labelled, seed=plan.seed)
    controls = {"training answer": _from_training(answers, plan), "shuffled images": answers.by_view.get(SHUFFLED)}
    for name, given in controls.items():
        if given:
            predictions = _read_classes(answers, given)
            result["controls"][name] = zero_shot.score_control(name, predictions, seed=plan.seed)
    if plan.training and "training answer" not in result["controls"]:
        result["problems"] = {_NOT_TRAINED: 1}
    return result


def _from_training(answers: Answers, plan: Plan) -> list[Answered]:
    """What the training material says of every image, whose question is one; nothing if it does not ask that."""
    said = training_answer(answers.questions.items[0].question, plan.training)
    return [] if said is None else [replace(each, answer=said) for each in answers.by_view[AS_IS]]


def _read_classes(answers: Answers, given: Sequence[Answered]) -> Predictions:
    assert answers.questions.labelled is not None
    readable = [each for each in given if each.item.image not in answers.problems]
    return read_classes(readable, class_set=answers.questions.labelled.class_set)


_SCORERS: dict[str, Callable[[Answers, Plan], dict[str, Any]]] = {
    "caption": _score_captions,
    "zero-shot": _score_classes,
}
