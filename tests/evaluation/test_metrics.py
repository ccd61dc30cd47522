"""Our metrics against scikit-learn's, and what the intervals promise."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from pallava.evaluation import statistics as metrics
from pallava.evaluation.statistics import UNNAMED, Predictions


def random_predictions(num_classes: int, count: int = 300, seed: int = 0, ties: bool = False) -> Predictions:
    rng = np.random.default_rng(seed)
    true = rng.integers(num_classes, size=count)
    logits = rng.normal(size=(count, num_classes)) + np.eye(num_classes)[true]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        scores = np.round(scores * 4) + 1
        scores /= scores.sum(1, keepdims=True)
    return Predictions(tuple(map(str, range(num_classes))), true, scores.argmax(1), scores)


@pytest.mark.parametrize("num_classes", [2, 4, 9])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_those_of_scikit_learn(num_classes: int, ties: bool):
    given = random_predictions(num_classes, seed=num_classes, ties=ties)
    true, predicted, scores = given.true, given.predicted, given.scores
    assert scores is not None
    found = {name: estimate.value for name, estimate in metrics.estimate_all(given, num_resamples=2).items()}
    area = (
        theirs.roc_auc_score(true, scores[:, 1])
        if num_classes == 2
        else theirs.roc_auc_score(true, scores, multi_class="ovr", average="macro")
    )
    assert found == pytest.approx(
        {
            "accuracy": theirs.accuracy_score(true, predicted),
            "balanced_accuracy": theirs.balanced_accuracy_score(true, predicted),
            "macro_f1": theirs.f1_score(true, predicted, average="macro"),
            "micro_f1": theirs.f1_score(true, predicted, average="micro"),
            "auroc": area,
        },
        abs=1e-12,
    )
    counts = metrics.confusion(given)
    assert np.array_equal(counts[:, :-1], theirs.confusion_matrix(true, predicted))
    expected = theirs.precision_recall_fscore_support(true, predicted, zero_division=0)
    for ours, reference in zip(metrics.per_class(counts).values(), expected, strict=True):
        np.testing.assert_allclose(ours, reference)


def test_classes_without_images_or_predictions_count_as_scikit_learn_counts_them():
    labels = ("a", "b", "c", "d", "e")
    true, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 0])  # no c and e at all, no d predicted
    counts = metrics.confusion(Predictions(labels, true, predicted))
    assert metrics.macro_f1(counts) == pytest.approx(theirs.f1_score(true, predicted, average="macro", zero_division=0))
    assert metrics.balanced_accuracy(counts) == pytest.approx(theirs.balanced_accuracy_score(true, predicted))


def test_an_answer_without_a_class_is_wrong():
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, UNNAMED, 1, UNNAMED])
    given = Predictions(("a", "b"), true, predicted)
    counts = metrics.confusion(given)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert metrics.accuracy(counts) == 0.5
    micro = theirs.f1_score(true, predicted, labels=[0, 1], average="micro")
    assert metrics.micro_f1(counts) == pytest.approx(micro)
    assert "auroc" not in metrics.estimate_all(given, num_resamples=3)


def test_resamples_are_those_of_a_loop():
    given = random_predictions(3, count=40)
    (drawn,) = metrics.draw(40, 5, seed=1)
    values = metrics._values(given, drawn)
    assert given.scores is not None
    for number, row in enumerate(drawn):
        true, predicted, scores = given.true[row], given.predicted[row], given.scores[row]
        assert values["macro_f1"][number] == pytest.approx(theirs.f1_score(true, predicted, average="macro"))
        area = theirs.roc_auc_score(true, scores, multi_class="ovr", average="macro")
        assert values["auroc"][number] == pytest.approx(area)


def test_intervals_are_seeded_and_cover_what_they_should():
    given = random_predictions(2, count=400)
    first, again = (metrics.estimate_all(given, num_resamples=300, seed=3) for _ in range(2))
    assert first == again
    assert first != metrics.estimate_all(given, num_resamples=300, seed=4)
    found = first["accuracy"]
    spread = 1.96 * np.sqrt(found.value * (1 - found.value) / 400)
    assert found.value - found.low == pytest.approx(spread, rel=0.25)
    assert found.high - found.value == pytest.approx(spread, rel=0.25)


def test_chunks_together_are_all_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "_CHUNK", 100)
    assert [len(chunk) for chunk in metrics.draw(30, 8, seed=0)] == [3, 3, 2]
    one_class = Predictions(("a", "b"), np.zeros(30, dtype=int), np.zeros(30, dtype=int), np.ones((30, 2)))
    assert np.isnan(metrics.estimate_all(one_class, num_resamples=8)["auroc"].value)
