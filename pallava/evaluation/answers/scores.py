"""Scores of answered questions, each by its definition, with intervals and with what can be had without looking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answered, Kind
from pallava.evaluation.answers.options import class_names, read_choice, read_class
from pallava.evaluation.answers.rules import (
    bleu_1,
    is_exact_match,
    is_published_choice,
    is_published_match,
    is_right_by_llava_med,
    is_right_by_quilt_llava,
    published_form,
    token_overlap,
)
from pallava.evaluation.examples import ClassSet
from pallava.evaluation.statistics import Predictions, estimate_means
from pallava.prompts import CHOICE_LETTERS


@dataclass(frozen=True)
class Score:
    """One way to score answers.

    Attributes:
        kinds: Of the questions that it is a mean over.
        of: From 0 to 1, given the answer, the reference and the choices.
        definition: The same in a sentence.
    """

    kinds: tuple[Kind, ...]
    of: Callable[[str, str, Sequence[str]], float]
    definition: str


def _of_pair(rule: Callable[[str, str], float]) -> Callable[[str, str, Sequence[str]], float]:
    return lambda answer, reference, choices: float(rule(answer, reference))


_PUBLISHED = (
    "that equal their reference by PA-LLaVA's rule: lower case, without , . ' ! ? \" ( ) * # : ; ~ and outer spaces."
)
_TOKENS = "mean over open questions; tokens are made as the VQA challenge does, and compared as sets."
_EXACT = "that equal their reference but for case, spaces and a final full stop."

SCORES: dict[str, Score] = {
    "published_open": Score(
        ("open",), _of_pair(is_published_match), f"Share of open questions with answers {_PUBLISHED}"
    ),
    "published_closed": Score(
        ("closed",), _of_pair(is_published_match), f"Share of yes/no questions with answers {_PUBLISHED}"
    ),
    "published_overall": Score(
        ("open", "closed"),
        _of_pair(is_published_match),
        f"Share of open and yes/no questions with answers {_PUBLISHED}",
    ),
    "published_choice": Score(
        ("choice",),
        _of_pair(is_published_choice),
        "Share of multiple-choice questions right by PA-LLaVA's rule: the text before the first colon is the letter.",
    ),
    "choice_accuracy": Score(
        ("choice",),
        lambda answer, reference, choices: float(read_choice(answer, choices) == reference.strip().upper()),
        "Share of multiple-choice questions whose answer names the right choice and no other, by letter or by text.",
    ),
    "exact_match_open": Score(("open",), _of_pair(is_exact_match), f"Share of open questions with answers {_EXACT}"),
    "token_recall": Score(
        ("open",),
        _of_pair(lambda answer, reference: token_overlap(answer, reference).recall),
        f"Share of the reference's tokens that the answer has: {_TOKENS}",
    ),
    "token_precision": Score(
        ("open",),
        _of_pair(lambda answer, reference: token_overlap(answer, reference).precision),
        f"Share of the answer's tokens that the reference has: {_TOKENS}",
    ),
    "token_f1": Score(
        ("open",),
        _of_pair(lambda answer, reference: token_overlap(answer, reference).f1),
        f"Harmonic mean of each answer's token precision and recall: {_TOKENS}",
    ),
    "bleu_1": Score(
        ("open",),
        _of_pair(bleu_1),
        "BLEU of single tokens, made as the VQA challenge does, of each answer: mean over open questions.",
    ),
    "exact_match_closed": Score(
        ("closed",), _of_pair(is_exact_match), f"Share of yes/no questions with answers {_EXACT}"
    ),
    "llava_med_closed": Score(
        ("closed",),
        _of_pair(is_right_by_llava_med),
        "Share of yes/no questions right by LLaVA-Med's rule: the reference occurs in the answer, even inside a word.",
    ),
    "quilt_llava_closed": Score(
        ("closed",),
        _of_pair(is_right_by_quilt_llava),
        "Share of yes/no questions right by Quilt-LLaVA's rule: the word no or not means no, all other words mean yes.",
    ),
}

CONTROLS = {
    "majority answer": "the same for the most frequent reference of each kind of question, given as the answer to all",
    "training answer": "the same for the training set's most frequent answer to the question, or else to its kind",
    "shuffled images": "the same for the model's answers when it was shown other images",
}


def score_questions(
    answered: Sequence[Answered],
    *,
    training: Sequence[tuple[str, str]] = (),
    shuffled: Sequence[Answered] = (),
    num_resamples: int = metrics.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores answers to open, yes/no and multiple-choice questions; those of other kinds are counted only.

    Args:
        answered: All questions that were to be asked; one that was not answered has an empty answer, which is wrong.
        training: Question and answer of each pair that was trained on, the question worded as in `answered`.
        shuffled: Answers to the same questions about other images.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Counts, and by name the scores that the questions allow, each with its interval, the number of questions that
        it is a mean over, and its definition; ``controls`` holds, by name of the control, the same scores of answers
        that were had without looking at the right image.
    """
    controls = {
        "majority answer": _majority(answered),
        "training answer": _from_training(answered, training),
        "shuffled images": shuffled,
    }
    return {
        "num_questions": len(answered),
        "counts": dict(Counter(each.item.kind for each in answered)),
        "num_unanswered": sum(not each.answer.strip() for each in answered),
        "num_unread_choices": sum(_is_unread(each) for each in answered),
        "scores": _scores(answered, num_resamples, seed),
        "controls": {
            control: {
                name: {**score, "definition": f"{score['definition'].rstrip('.')}; {CONTROLS[control]}."}
                for name, score in _scores(given, num_resamples, seed).items()
            }
            for control, given in controls.items()
            if given
        },
        "interval": f"95 %, {num_resamples} bootstrap resamples of images with all their questions, seed {seed}",
    }


def read_classes(answered: Sequence[Answered], *, class_set: ClassSet | None = None) -> Predictions:
    """Reads generated answers to which class an image is of; those that name no class, or several, are unnamed.

    Args:
        answered: All with the same classes as their choices.
        class_set: Names of the classes; default: those of the set that comes with the package and has these labels.

    Raises:
        ValueError: There is no answer, the classes differ, or a reference is none of them.
    """
    (labels,) = {each.item.choices for each in answered}
    names = class_names(labels, class_set)
    read = [read_class(each.answer, names) for each in answered]
    predicted = [metrics.UNNAMED if number is None else number for number in read]
    return Predictions(labels, np.array([labels.index(each.item.reference) for each in answered]), np.array(predicted))


def training_answer(question: str, training: Iterable[tuple[str, str]]) -> str | None:
    """What training pairs say most often to a question, whatever its kind; None if none of them asks it."""
    form = published_form(question)
    return _most_frequent((form, answer) for asked, answer in training if published_form(asked) == form).get(form)


def _scores(answered: Sequence[Answered], num_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every score that the kinds of questions allow; those over the same questions share their resamples."""
    by_kinds: dict[tuple[Kind, ...], list[str]] = defaultdict(list)
    for name, score in SCORES.items():
        by_kinds[score.kinds].append(name)
    results: dict[str, dict[str, Any]] = {}
    for kinds, names in by_kinds.items():
        own = [each for each in answered if each.item.kind in kinds]
        if {each.item.kind for each in own} == set(kinds):
            results |= dict(zip(names, _means(own, [SCORES[name] for name in names], num_resamples, seed), strict=True))
    return {name: results[name] for name in SCORES if name in results}


def _means(
    answered: Sequence[Answered], scores: Sequence[Score], num_resamples: int, seed: int
) -> Iterable[dict[str, Any]]:
    values = [[s.of(a.answer, a.item.reference, a.item.choices) for a in answered] for s in scores]
    images = [each.item.image for each in answered]
    estimates = estimate_means(values, images, num_resamples=num_resamples, seed=seed)
    for score, estimate in zip(scores, estimates, strict=True):
        yield {**asdict(estimate), "count": len(answered), "definition": score.definition}


def _majority(answered: Sequence[Answered]) -> list[Answered]:
    """The same questions with the most frequent reference of their kind as answer."""
    frequent = _most_frequent((each.item.kind, each.item.reference) for each in answered)
    return [replace(each, answer=frequent[each.item.kind]) for each in answered]


def _from_training(answered: Sequence[Answered], training: Sequence[tuple[str, str]]) -> list[Answered]:
    """The same questions answered as the training set answers them most often; none if there is no such set."""
    if not training:
        return []
    of_question = _most_frequent((_kind_and_question(*pair), pair[1]) for pair in training)
    of_kind = _most_frequent((_kind_of(answer), answer) for _, answer in training)
    return [
        replace(each, answer=of_question.get((kind, published_form(each.item.question)), of_kind.get(kind, "")))
        for each in answered
        for kind in [each.item.kind]
    ]


def _kind_and_question(question: str, answer: str) -> tuple[Kind, str]:
    return _kind_of(answer), published_form(question)


def _kind_of(answer: str) -> Kind:
    """What kind of question has such an answer; training pairs do not say."""
    form = published_form(answer)
    if form in ("yes", "no"):
        return "closed"
    return "choice" if len(form) == 1 and form.upper() in CHOICE_LETTERS else "open"


def _most_frequent(pairs: Iterable[tuple[Any, str]]) -> Mapping[Any, str]:
    """Of each key the text that occurs most often with it, as PA-LLaVA compares texts; of equals the first."""
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    spelled: dict[tuple[Any, str], str] = {}
    for key, text in pairs:
        form = published_form(text)
        counts[key][form] += 1
        spelled.setdefault((key, form), text)
    return {key: spelled[key, counter.most_common(1)[0][0]] for key, counter in counts.items()}


def _is_unread(answered: Answered) -> bool:
    item = answered.item
    return item.kind == "choice" and read_choice(answered.answer, item.choices) is None
