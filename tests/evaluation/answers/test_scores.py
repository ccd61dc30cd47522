"""Scores of whole sets of answers: their means, intervals and controls, and the reading of classes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as theirs

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import AS_IS, SHUFFLED, Answer, AnswerSet, Item, Kind, Questions
from pallava.evaluation.answers.scores import CONTROLS, SCORES, read_classes, score_questions, training_answer
from pallava.evaluation.class_sets import known_sets
from pallava.evaluation.encoders import zero_shot
from pallava.evaluation.statistics import Predictions

CHOICES = ("fat", "bone", "skin", "nerve")


def ask(
    kind: Kind, reference: str, answer: str, *, image: str = "", question: str = "?", choices: tuple[str, ...] = ()
) -> Answer:
    return Answer(Item(f"{kind}{reference}{answer}{image}", image, question, reference, kind, choices), answer)


def scored(
    answers: list[Answer],
    *,
    training: Sequence[tuple[str, str]] = (),
    shuffled: Sequence[Answer] = (),
    **bootstrap: int,
) -> dict[str, Any]:
    questions = Questions([], training=training)
    return score_questions(AnswerSet({AS_IS: answers, SHUFFLED: shuffled}, questions), **bootstrap)


def mixed(count: int = 60, seed: int = 0) -> list[Answer]:
    """Questions of three kinds, three an image."""
    rng = np.random.default_rng(seed)
    said = {"open": ["the liver", "liver", "a kidney", ""], "closed": ["yes", "No.", "maybe", "Yes, it is"]}
    answered = []
    for number in range(count):
        image, pick = f"{number // 3}.png", rng.integers(4)
        answered += [
            ask("open", ["liver", "kidney"][rng.integers(2)], said["open"][pick], image=image),
            ask("closed", ["yes", "no"][rng.integers(2)], said["closed"][pick], image=image),
            ask("choice", "ABCD"[rng.integers(4)], f"({'ABCD'[pick]})", image=image, choices=CHOICES),
        ]
    return answered


def test_every_score_is_a_mean_over_the_questions_of_its_kind_and_says_what_it_is():
    answered = mixed()
    result = scored(answered, num_resamples=20)
    assert result["num_questions"] == 180
    assert result["counts"] == {"open": 60, "closed": 60, "choice": 60}
    assert list(result["scores"]) == list(SCORES)
    for name, found in result["scores"].items():
        own = [each for each in answered if each.item.kind in SCORES[name].kinds]
        values = [SCORES[name].rule(each) for each in own]
        assert found["value"] == pytest.approx(sum(values) / len(values)), name
        assert found["count"] == len(own)
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert found["definition"].endswith(".")
        assert found["definition"].count(". ") <= 1
    assert 0 < result["scores"]["published_closed"]["value"] < result["scores"]["llava_med_closed"]["value"] < 1
    json.dumps(result, allow_nan=False)


def test_unanswered_questions_count_as_wrong():
    answered = [ask("open", "liver", "liver"), ask("open", "liver", ""), ask("closed", "yes", " \n")]
    answered += [ask("closed", "yes", "yes"), ask("choice", "B", "", choices=CHOICES)]
    result = scored(answered, num_resamples=5)
    assert result["num_unanswered"] == 3
    assert result["num_unread_choices"] == 1
    values = {name: score["value"] for name, score in result["scores"].items()}
    assert set(values.values()) == {0.5, 0.0}
    assert {name for name, value in values.items() if not value} == {"published_choice", "choice_accuracy"}


def test_the_open_score_is_there_whatever_the_open_answers_are():
    result = scored([ask("open", "7", "7"), ask("closed", "no", "no")], num_resamples=5)
    assert result["scores"]["published_open"]["value"] == 1
    assert "choice_accuracy" not in result["scores"]
    assert "published_overall" not in scored([ask("open", "7", "7")], num_resamples=5)["scores"]


def test_spaces_around_references_do_not_matter():
    answered = [ask("open", " liver ", "Liver"), ask("closed", "no ", "no"), ask("choice", " b", "B", choices=CHOICES)]
    result = scored(answered, num_resamples=5)
    assert {score["value"] for score in result["scores"].values()} == {1.0}


def test_accuracies_equal_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    words, letters = np.array(["yes", "no"]), np.array([*"ABCD"])
    true, said = words[rng.integers(2, size=80)], words[rng.integers(2, size=80)]
    right, chosen = letters[rng.integers(4, size=80)], letters[rng.integers(4, size=80)]
    answered = [ask("closed", *pair) for pair in zip(true, said, strict=True)]
    answered += [ask("choice", *pair, choices=CHOICES) for pair in zip(right, chosen, strict=True)]
    values = {name: score["value"] for name, score in scored(answered, num_resamples=5)["scores"].items()}
    closed, choice = theirs.accuracy_score(true, said), theirs.accuracy_score(right, chosen)
    assert values == pytest.approx(
        {name: closed if "closed" in score.kinds else choice for name, score in SCORES.items() if name in values}
    )
    assert len(values) == 6


def test_intervals_are_those_of_drawing_whole_images():
    answered = [each for each in mixed(90, seed=2) if each.item.kind == "closed"][:-1]  # one image has fewer
    answered += [replace(each, item=replace(each.item, image="")) for each in answered[:7]]  # and seven stand alone
    found = scored(answered, num_resamples=200, seed=5)["scores"]["llava_med_closed"]
    groups: dict[str, list[float]] = {}
    for number, each in enumerate(answered):
        right = SCORES["llava_med_closed"].rule(each)
        groups.setdefault(each.item.image or f"\0{number}", []).append(right)
    ordered = [groups[name] for name in sorted(groups)]
    assert len(ordered) == 37
    (drawn,) = metrics.draw(len(ordered), 200, 5)
    means = [np.mean([value for number in row for value in ordered[number]]) for row in drawn]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found["low"] < found["value"] < found["high"]


def test_questions_about_one_image_are_not_taken_for_independent():
    """Each image ten times: the interval must be that of the images, not a third of it."""
    rng = np.random.default_rng(3)
    said = ["yes" if right else "no" for right in rng.integers(2, size=100)]
    many = [ask("closed", "yes", answer, image=f"{n}.png") for n, answer in enumerate(said) for _ in range(10)]
    one = [ask("closed", "yes", answer, image=f"{n}.png") for n, answer in enumerate(said)]
    (wide, expected) = (scored(each, num_resamples=500)["scores"]["published_closed"] for each in (many, one))
    assert wide | {"count": 0} == pytest.approx(expected | {"count": 0})
    assert wide["high"] - wide["low"] > 0.15


def test_intervals_are_seeded():
    answered = mixed(seed=4)
    first, again, other = (scored(answered, num_resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["scores"] != other["scores"]
    assert "50 bootstrap" in first["interval"]
    assert "seed 1" in first["interval"]


def values_of(result: dict[str, Any], control: str) -> dict[str, float]:
    return {name: score["value"] for name, score in result["controls"][control].items()}


def test_the_majority_is_what_always_giving_the_most_frequent_reference_scores():
    answered = [ask("closed", reference, "?") for reference in ["yes", "no", "no", "No."]]
    answered += [ask("open", reference, "?") for reference in ["liver", "X-ray ", "x ray", "skin"]]
    answered += [ask("choice", reference, "?", choices=CHOICES) for reference in "ABBC"]
    result = scored(answered, num_resamples=10)
    found = values_of(result, "majority answer")
    assert list(found) == list(SCORES)
    assert found["published_closed"] == found["quilt_llava_closed"] == 0.75
    assert found["published_open"] == 0.5
    assert found["published_overall"] == 0.625
    assert found["choice_accuracy"] == found["published_choice"] == 0.5
    assert set(result["controls"]) == {"majority answer"}


def test_the_training_set_answers_with_what_it_says_most_often_to_a_question():
    answered = [
        ask("closed", "yes", "?", question="Is it benign?"),
        ask("closed", "no", "?", question="Never seen?"),
        ask("open", "liver", "?", question="What organ is this?"),
        ask("open", "kidney", "?", question="Never seen, open?"),
        ask("choice", "C", "?", question="Which?\nA. a\nB. b", choices=CHOICES),
        ask("choice", "D", "?", question="Another?", choices=CHOICES),
    ]
    training = [("is it benign", "Yes"), ("Is it benign?", "yes"), ("Is it benign?", "no")]
    training += [(f"q{number}", "no") for number in range(3)] + [("What organ is this?", "skin")]
    training += [("What organ is this?", "liver")] * 2 + [("other", "spleen")] * 3
    training += [("Which?\nA. a\nB. b", "C"), ("x", "D"), ("y", "D")]
    found = values_of(scored(answered, training=training, num_resamples=5), "training answer")
    assert found["published_closed"] == 1.0
    assert found["published_open"] == 0.5
    assert found["choice_accuracy"] == 1.0
    closed_only = values_of(scored(answered, training=training[:3], num_resamples=5), "training answer")
    assert closed_only["published_open"] == closed_only["choice_accuracy"] == 0
    assert closed_only["published_closed"] == 0.5


def test_answers_about_other_images_are_scored_alike():
    answered = [ask("closed", "yes", "yes", image=f"{n}.png") for n in range(8)]
    shuffled = [replace(each, text="no" if n % 4 else "yes") for n, each in enumerate(answered)]
    result = scored(answered, shuffled=shuffled, num_resamples=20)
    control = result["controls"]["shuffled images"]
    assert {score["value"] for score in control.values()} == {0.25}
    assert control.keys() == result["scores"].keys()
    assert CONTROLS["shuffled images"] in control["published_closed"]["definition"]
    assert control["published_closed"]["count"] == 8
    assert control["published_closed"]["low"] < 0.25


def test_other_kinds_are_counted_and_nothing_is_made_of_nothing():
    assert scored([], num_resamples=5)["scores"] == {}
    result = scored([ask("caption", "a", "b"), ask("open", "a", "a")], num_resamples=5)
    assert result["counts"] == {"caption": 1, "open": 1}
    assert "published_open" in result["scores"]
    assert {score["count"] for score in result["scores"].values()} == {1}


def test_read_classes_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(6)
    labels = known_sets()["bach"].labels
    spoken = [*(names[-1] for _, names in known_sets()["bach"].classes), "tissue"]
    true, said = rng.integers(4, size=150), rng.integers(5, size=150)
    answered = [
        ask("class", labels[t], f"This is {spoken[s]}.", choices=labels) for t, s in zip(true, said, strict=True)
    ]
    result = zero_shot.score(read_classes(answered), num_resamples=5)
    assert result["num_without_class"] == Counter(said.tolist())[4] > 10
    options: dict[str, Any] = {"labels": range(4), "zero_division": 0}
    precision, recall, f1, support = theirs.precision_recall_fscore_support(true, said, **options)
    for number, label in enumerate(labels):
        expected = [precision[number], recall[number], f1[number], support[number]]
        assert list(result["per_class"][label].values()) == pytest.approx(expected)
    assert {name: value["value"] for name, value in result["metrics"].items()} == pytest.approx(
        {
            "accuracy": theirs.accuracy_score(true, said),
            "balanced_accuracy": np.mean(recall),
            "macro_f1": theirs.f1_score(true, said, average="macro", **options),
            "micro_f1": theirs.f1_score(true, said, average="micro", **options),
        }
    )
    assert np.array_equal(result["confusion"]["counts"], theirs.confusion_matrix(true, said)[:4])


def test_scores_of_classes_say_what_they_are_and_stand_beside_the_majority():
    labels = ("a", "b", "c")
    true, said = [0, 0, 0, 1, 1, 2], ["a", "b", "a", "b", "?", "a"]
    answered = [ask("class", labels[t], s, choices=labels) for t, s in zip(true, said, strict=True)]
    result = zero_shot.score(read_classes(answered), num_resamples=5)
    majority = result["controls"]["majority answer"]
    assert list(majority) == list(result["metrics"]) == list(metrics.DEFINITIONS["metrics"])[:4]  # no area
    constant = [0] * 6
    assert {name: each["value"] for name, each in majority.items()} == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": theirs.balanced_accuracy_score(true, constant),
            "macro_f1": theirs.f1_score(true, constant, average="macro"),
            "micro_f1": 0.5,
        }
    )
    for name, each in result["metrics"].items():
        assert (each["count"], each["definition"]) == (6, metrics.DEFINITIONS["metrics"][name])
        assert majority[name]["definition"].startswith(each["definition"].rstrip("."))
        assert metrics.DEFINITIONS["class_controls"]["majority answer"] in majority[name]["definition"]
    assert set(result["per_class_definitions"]) == set(result["per_class"]["a"]) - {"support"}


def test_the_majority_has_no_area_but_one_half():
    scores = np.random.default_rng(0).normal(size=(9, 3))
    predictions = Predictions(("a", "b", "c"), np.arange(9) % 3, scores.argmax(1), scores)
    assert zero_shot.score(predictions, num_resamples=5)["controls"]["majority answer"]["auroc"]["value"] == 0.5


def test_what_training_says_to_a_question():
    training = [("Which is it?", "Fat."), ("which is it", "fat"), ("Which is it?", "bone"), ("Another?", "bone")]
    assert training_answer("Which is it?", training) == "Fat."
    assert training_answer("Never asked?", training) is None


def test_names_of_a_set_of_the_users_own_are_read():
    labels = ("TUM", "STR")
    answered = [ask("class", "STR", "stroma of a cancer", choices=labels)]
    assert read_classes(answered).predicted.tolist() == [metrics.UNNAMED]
    own = replace(known_sets()["bach"], classes=(("TUM", ("tumor",)), ("STR", ("stroma of a cancer",))))
    assert read_classes(answered, class_set=own).predicted.tolist() == [1]


def test_classes_must_be_the_same_of_all_images():
    answered = [ask("class", "a", "a", choices=("a", "b")), ask("class", "a", "a", choices=("a", "c"))]
    with pytest.raises(ValueError):
        read_classes(answered)
