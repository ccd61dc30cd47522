"""Scores of answers, each by its definition, with intervals and beside controls that need no look at the image.

A score of one's own is one more row of `SCORES`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pallava.evaluation.answers import rules
from pallava.evaluation.answers.items import Answer, AnswerSet, Kind, Questions
from pallava.evaluation.answers.rules import class_names, published_form, read_choice, read_class
from pallava.evaluation.class_sets import ClassSet
from pallava.evaluation.statistics import (
    DEFINITIONS,
    UNNAMED,
    Predictions,
    as_control,
    describe_interval,
    estimate_means,
)
from pallava.prompts import CHOICE_LETTERS


@dataclass(frozen=True)
class Score:
    """One way to score answers: the mean of a rule over the questions of some kinds."""

    kinds: tuple[str, ...]
    rule: Callable[[Answer], float]  # from an answer to its worth from 0 to 1
    definition: str  # the same in a sentence


def is_right(answer: Answer, questions: Questions | None = None) -> bool:
    """Return whether an answer is right, where the names of the classes in `questions` count.

    A choice and a class are read as a careful reader would; other answers are right if they equal the reference but
    for case, spaces and a full stop.
    """
    item = answer.item
    if item.kind == "choice":
        return read_choice(answer.text, item.choices) == item.reference.strip().upper()
    if item.kind == "class":
        number = read_class(answer.text, class_names(item.choices, questions.class_set if questions else None))
        return number is not None and item.choices[number] == item.reference
    return rules.is_exact_match(answer.final, item.reference)


def _pair(rule: Callable[[str, str], float]) -> Callable[[Answer], float]:
    return lambda answer: float(rule(answer.final, answer.item.reference))


def _overlap(number: int) -> Callable[[Answer], float]:
    return lambda answer: rules.token_overlap(answer.final, answer.item.reference)[number]


_PUBLISHED, _EXACT = _pair(rules.is_published_match), _pair(rules.is_exact_match)
_OPEN, _CLOSED, _CHOICE = ("open",), ("closed",), ("choice",)
_MEANING = DEFINITIONS["questions"]

SCORES: dict[str, Score] = {
    "published_open": Score(_OPEN, _PUBLISHED, _MEANING["published_open"]),
    "published_closed": Score(_CLOSED, _PUBLISHED, _MEANING["published_closed"]),
    "published_overall": Score(("open", "closed"), _PUBLISHED, _MEANING["published_overall"]),
    "published_choice": Score(_CHOICE, _pair(rules.is_published_choice), _MEANING["published_choice"]),
    "choice_accuracy": Score(_CHOICE, lambda answer: float(is_right(answer)), _MEANING["choice_accuracy"]),
    "exact_match_open": Score(_OPEN, _EXACT, _MEANING["exact_match_open"]),
    "token_recall": Score(_OPEN, _overlap(1), _MEANING["token_recall"]),
    "token_precision": Score(_OPEN, _overlap(0), _MEANING["token_precision"]),
    "token_f1": Score(_OPEN, _overlap(2), _MEANING["token_f1"]),
    "bleu_1": Score(_OPEN, _pair(rules.bleu_1), _MEANING["bleu_1"]),
    "exact_match_closed": Score(_CLOSED, _EXACT, _MEANING["exact_match_closed"]),
    "llava_med_closed": Score(_CLOSED, _pair(rules.is_right_by_llava_med), _MEANING["llava_med_closed"]),
    "quilt_llava_closed": Score(_CLOSED, _pair(rules.is_right_by_quilt_llava), _MEANING["quilt_llava_closed"]),
}

CONTROLS = DEFINITIONS["question_controls"]
_NOT_TRAINED = "question that the training material does not ask: it gives no control"


def count_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the counts of answers, of their kinds, and of empty ones."""
    return {
        "num_questions": len(answers),
        "counts": dict(Counter(each.item.kind for each in answers)),
        "num_unanswered": sum(not each.final.strip() for each in answers),
    }


def score_questions(answers: AnswerSet, **bootstrap: int) -> dict[str, Any]:
    """Score answers to open, yes/no and multiple-choice questions; those of other kinds are counted only.

    An empty answer is wrong, and thoughts are not part of one. Questions of the training material are known again if
    they are worded as in `answers`.

    Returns:
        Counts, and by name the scores that the questions allow, each with its interval, the number of questions that
        it is a mean over, and its definition; ``controls`` holds, by name of the control, the same scores of answers
        that need no look at the right image.
    """
    as_is, training = answers.as_is, answers.questions.training
    given = {
        "majority answer": _majority(as_is),
        "training answer": _from_training(as_is, training) if training else [],
        "shuffled images": answers.shuffled,
    }
    unread = (each for each in as_is if each.item.kind == "choice" and not read_choice(each.text, each.item.choices))
    return {
        **count_answers(as_is),
        "num_unread_choices": sum(1 for _ in unread),
        "scores": _scores(as_is, **bootstrap),
        "controls": {name: as_control(_scores(own, **bootstrap), CONTROLS[name]) for name, own in given.items() if own},
        "interval": describe_interval("images with all their questions", **bootstrap),
    }


def score_classes(answers: AnswerSet, **bootstrap: int) -> dict[str, Any]:
    """Score answers that name classes, as zero-shot classification by an encoder is scored.

    An image that cannot be opened is left out, as it is for an encoder.
    """
    from pallava.evaluation.encoders import zero_shot

    def read(given: Sequence[Answer]) -> Predictions:
        opened = [each for each in given if each.item.image not in answers.problems]
        return read_classes(opened, class_set=answers.questions.class_set)

    training = answers.questions.training
    result = zero_shot.report(read(answers.as_is), answers.questions, answers.problems, **bootstrap)
    text = training_answer(answers.as_is[0].item.question, training)
    trained = [] if text is None else [replace(each, text=text) for each in answers.as_is]
    for name, given in {"training answer": trained, "shuffled images": answers.shuffled}.items():
        if given:
            result["controls"][name] = zero_shot.score_control(name, read(given), **bootstrap)
    return {"problems": {_NOT_TRAINED: 1} if training and not trained else {}, **result}


def read_classes(answers: Sequence[Answer], *, class_set: ClassSet | None = None) -> Predictions:
    """Read which class each answer names; one that names no class, or several, is `UNNAMED`.

    The names are those of the class set, by default of the known set that has these labels. All answers have the same
    classes.

    Raises:
        ValueError: There are no answers, their classes differ, or a reference is not one of them.
    """
    (labels,) = {each.item.choices for each in answers}
    names = class_names(labels, class_set)
    numbers = [read_class(each.text, names) for each in answers]
    predicted = [UNNAMED if number is None else number for number in numbers]
    return Predictions(labels, np.array([labels.index(each.item.reference) for each in answers]), np.array(predicted))


def training_answer(question: str, training: Iterable[tuple[str, str]]) -> str | None:
    """Return the most frequent answer of training pairs to a question, whatever its kind; None if no pair has it."""
    return _most_frequent((published_form(other), answer) for other, answer in training).get(published_form(question))


def _scores(answers: Sequence[Answer], **bootstrap: int) -> dict[str, dict[str, Any]]:
    """Every score that the kinds of questions allow; those over the same questions share their resamples."""
    results: dict[str, dict[str, Any]] = {}
    for kinds in {score.kinds: None for score in SCORES.values()}:
        own = [each for each in answers if each.item.kind in kinds]
        if {each.item.kind for each in own} == set(kinds):
            chosen = {name: score for name, score in SCORES.items() if score.kinds == kinds}
            values = [[score.rule(each) for each in own] for score in chosen.values()]
            found = estimate_means(values, [each.item.image for each in own], **bootstrap)
            for (name, score), estimate in zip(chosen.items(), found, strict=True):
                results[name] = estimate.to_dict(len(own), score.definition)
    return {name: results[name] for name in SCORES if name in results}


def _majority(answers: Sequence[Answer]) -> list[Answer]:
    frequent = _most_frequent((each.item.kind, each.item.reference) for each in answers)
    return [replace(each, text=frequent[each.item.kind]) for each in answers]


def _from_training(answers: Sequence[Answer], training: Sequence[tuple[str, str]]) -> list[Answer]:
    """Answer each question as the training set answers it most often, or else its kind."""
    kinds = [(_kind_of(answer), published_form(question), answer) for question, answer in training]
    of_question = _most_frequent(((kind, question), answer) for kind, question, answer in kinds)
    of_kind = _most_frequent((kind, answer) for kind, _, answer in kinds)
    keys = [(each.item.kind, published_form(each.item.question)) for each in answers]
    texts = [of_question.get(key, of_kind.get(key[0], "")) for key in keys]
    return [replace(each, text=text) for each, text in zip(answers, texts, strict=True)]


def _kind_of(answer: str) -> Kind:
    """Guess the kind of a question from its answer, since training pairs do not record it."""
    form = published_form(answer)
    if form in ("yes", "no"):
        return "closed"
    return "choice" if len(form) == 1 and form.upper() in CHOICE_LETTERS else "open"


def _most_frequent(pairs: Iterable[tuple[Any, str]]) -> Mapping[Any, str]:
    """By key the text that occurs most often with it, as PA-LLaVA compares texts; of equals the first."""
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    spelled: dict[tuple[Any, str], str] = {}
    for key, text in pairs:
        form = published_form(text)
        counts[key][form] += 1
        spelled.setdefault((key, form), text)
    return {key: spelled[key, counter.most_common(1)[0][0]] for key, counter in counts.items()}
