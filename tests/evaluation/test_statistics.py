"""Our metrics against scikit-learn's, and what the intervals promise."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from pallava.evaluation import statistics
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
    found = {name: estimate.value for name, estimate in statistics.estimate_all(given, num_resamples=2).items()}
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
    counts = statistics.confusion(given)
    assert np.array_equal(counts[:, :-1], theirs.confusion_matrix(true, predicted))
    expected = theirs.precision_recall_fscore_support(true, predicted, zero_division=0)
    for ours, reference in zip(statistics.per_class(counts).values(), expected, strict=True):
        np.testing.assert_allclose(ours, reference)


def test_classes_without_images_or_predictions_count_as_scikit_learn_counts_them():
    labels = ("a", "b", "c", "d", "e")
    true, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 0])  # no c and e at all, no d predicted
    counts = statistics.confusion(Predictions(labels, true, predicted))
    found = statistics.score_counts(counts)
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(true, predicted, average="macro", zero_division=0))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(true, predicted))


def test_an_answer_without_a_class_is_wrong():
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, UNNAMED, 1, UNNAMED])
    given = Predictions(("a", "b"), true, predicted)
    counts = statistics.confusion(given)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert statistics.score_counts(counts)["accuracy"] == 0.5
    micro = theirs.f1_score(true, predicted, labels=[0, 1], average="micro")
    assert statistics.score_counts(counts)["micro_f1"] == pytest.approx(micro)
    assert "auroc" not in statistics.estimate_all(given, num_resamples=3)


def test_resamples_are_those_of_a_loop():
    given = random_predictions(3, count=40)
    (drawn,) = statistics.draw(40, 5, seed=1)
    weights = statistics._times_drawn(drawn)
    assert given.scores is not None
    values = {
        "macro_f1": statistics.score_counts(statistics._confusions(given, weights))["macro_f1"],
        "auroc": statistics.auroc(given.true, given.scores, weights),
    }
    for number, row in enumerate(drawn):
        true, predicted, scores = given.true[row], given.predicted[row], given.scores[row]
        assert values["macro_f1"][number] == pytest.approx(theirs.f1_score(true, predicted, average="macro"))
        area = theirs.roc_auc_score(true, scores, multi_class="ovr", average="macro")
        assert values["auroc"][number] == pytest.approx(area)


def test_intervals_are_seeded_and_cover_what_they_should():
    given = random_predictions(2, count=400)
    first, again = (statistics.estimate_all(given, num_resamples=300, seed=3) for _ in range(2))
    assert first == again
    assert first != statistics.estimate_all(given, num_resamples=300, seed=4)
    found = first["accuracy"]
    spread = 1.96 * np.sqrt(found.value * (1 - found.value) / 400)
    assert found.value - found.low == pytest.approx(spread, rel=0.25)
    assert found.high - found.value == pytest.approx(spread, rel=0.25)


def test_chunks_together_are_all_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_CHUNK", 100)
    assert [len(chunk) for chunk in statistics.draw(30, 8, seed=0)] == [3, 3, 2]
    one_class = Predictions(("a", "b"), np.zeros(30, dtype=int), np.zeros(30, dtype=int), np.ones((30, 2)))
    assert np.isnan(statistics.estimate_all(one_class, num_resamples=8)["auroc"].value)


def test_resamples_without_a_value_are_left_out_of_the_interval():
    """One positive among three: many resamples have no area, and the others still make an interval."""
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    given = Predictions(("a", "b"), np.array([0, 1, 1]), scores.argmax(1), scores)
    (drawn,) = statistics.draw(3, 100, seed=0)
    weights = statistics._times_drawn(drawn)
    assert np.isnan(statistics.auroc(given.true, scores, weights)).any()
    area = statistics.estimate_all(given, num_resamples=100)["auroc"]
    assert (area.value, area.low, area.high) == (1.0, 1.0, 1.0)


def test_bootstrap_of_a_mean_is_that_of_a_loop():
    values = np.random.default_rng(0).normal(size=50)
    rng = np.random.default_rng(7)
    means = [values[rng.integers(50, size=(1, 50))[0]].mean() for _ in range(200)]
    (found,) = statistics.bootstrap(lambda w: w @ values[:, None] / 50, 50, num_resamples=200, seed=7)
    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))
