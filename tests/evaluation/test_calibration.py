"""Calibration, risk against coverage and thresholds against naive ones, and what a split promises."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from pallava.evaluation import calibration
from pallava.evaluation.calibration import (
    area_under_risk,
    calibrated_error,
    calibration_error,
    estimate_confidence,
    estimate_selection,
    fit_threshold,
    reliability,
    risk_curve,
    split_images,
)

CASES = {
    "one bin": ([0.41, 0.42, 0.45, 0.46], [1, 0, 1, 1]),
    "ties": ([0.9, 0.9, 0.5, 0.5, 0.5, 0.1], [1, 0, 0, 1, 0, 1]),
    "all equal": ([0.5] * 5, [1, 0, 0, 1, 1]),
    "all right": ([0.2, 0.8, 0.8, 1.0], [1, 1, 1, 1]),
    "all wrong": ([0.2, 0.8, 0.8, 1.0], [0, 0, 0, 0]),
    "a single right one": ([0.7], [1]),
    "a single wrong one": ([0.7], [0]),
    "edges of bins": ([0.0, 1 / 15, 0.2, 0.4, 2 / 3, 1.0], [1, 0, 1, 0, 1, 0]),
}


def given(name: str) -> tuple[np.ndarray, np.ndarray]:
    probability, right = CASES[name]
    return np.array(probability, dtype=float), np.array(right, dtype=bool)


def random_answers(count: int, seed: int = 0, digits: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.random(count).round(digits)
    return probability, rng.random(count) < probability**2


def once(count: int) -> np.ndarray:
    return np.ones((1, count), dtype=np.int64)


def naive_error(probability: np.ndarray, right: np.ndarray) -> float:
    """As Guo et al. write it: bins ((m - 1) / 15, m / 15], their accuracy and their mean confidence."""
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        own = [place for place, value in enumerate(probability) if low < value <= high or (number == value == 0)]
        if own:
            accuracy = sum(bool(right[place]) for place in own) / len(own)
            confidence = sum(probability[place] for place in own) / len(own)
            total += len(own) / len(probability) * abs(accuracy - confidence)
    return total


def naive_area(order: list[int], right: np.ndarray) -> float:
    risks = [sum(not right[place] for place in order[:k]) / k for k in range(1, len(order) + 1)]
    return sum(risks) / len(risks)


def mean_area(probability: np.ndarray, right: np.ndarray) -> float:
    """Over every order in which no answer stands before a more probable one."""
    orders = [
        list(order)
        for order in itertools.permutations(range(len(right)))
        if all(probability[one] >= probability[next_] for one, next_ in itertools.pairwise(order))
    ]
    return sum(naive_area(order, right) for order in orders) / len(orders)


@pytest.mark.parametrize("name", CASES)
def test_edge_cases_equal_naive_ones(name: str):
    probability, right = given(name)
    weights = once(len(right))
    assert calibration_error(probability, right, weights) == pytest.approx([naive_error(probability, right)])
    assert area_under_risk(probability, right, weights) == pytest.approx([mean_area(probability, right)])


@pytest.mark.parametrize("digits", [9, 2])
def test_many_answers_equal_naive_ones(digits: int):
    probability, right = random_answers(400, seed=digits, digits=digits)
    assert calibration_error(probability, right, once(400)) == pytest.approx([naive_error(probability, right)])
    order = sorted(range(400), key=lambda place: -probability[place])
    tolerance = 1e-12 if digits == 9 else 0.01  # ties in one order, rather than in all
    assert area_under_risk(probability, right, once(400)) == pytest.approx([naive_area(order, right)], abs=tolerance)


def test_known_numbers():
    right = np.array([True, False])
    assert calibration_error(np.array([0.7, 0.7]), right, once(2)) == pytest.approx([0.2])
    assert area_under_risk(np.array([0.9, 0.1]), right, once(2)) == pytest.approx([0.25])
    assert area_under_risk(np.array([0.1, 0.9]), right, once(2)) == pytest.approx([0.75])
    assert area_under_risk(np.array([0.5, 0.5]), right, once(2)) == pytest.approx([0.5])


@pytest.mark.parametrize("statistic", [calibration_error, area_under_risk])
@pytest.mark.parametrize("digits", [9, 1])
def test_weights_are_repeated_answers(statistic: Callable, digits: int):
    probability, right = random_answers(30, digits=digits)
    weights = np.random.default_rng(1).integers(0, 4, size=(20, 30))
    repeated = [statistic(probability.repeat(row), right.repeat(row), once(row.sum()))[0] for row in weights]
    assert statistic(probability, right, weights) == pytest.approx(repeated)


def test_controls_of_the_area():
    probability, right = random_answers(50)
    found = estimate_confidence(probability, right, [""] * 50, num_resamples=3)
    assert found["best order"].value == pytest.approx(naive_area(np.argsort(~right, kind="stable").tolist(), right))
    assert found["random order"].value == pytest.approx((~right).mean())
    assert found["best order"].value < found["aurc"].value < found["random order"].value


def test_intervals_draw_images_with_all_their_questions():
    """Two questions about an image are drawn together, as a loop over images does."""
    probability, right = random_answers(40)
    images = [f"{number // 2}.png" for number in range(40)]
    found = estimate_confidence(probability, right, images, num_resamples=60, seed=5)
    names = sorted(set(images))
    rows = np.random.default_rng(5).integers(20, size=(60, 20))
    values: dict[str, list[float]] = {"accuracy": [], "ece": [], "aurc": []}
    for row in rows:
        places = [place for number in row for place in range(40) if images[place] == names[number]]
        own = probability[places], right[places]
        values["accuracy"].append(own[1].mean())
        values["ece"].append(naive_error(*own))
        values["aurc"].append(area_under_risk(*own, once(40))[0])
    for name, each in values.items():
        expected = np.quantile(each, [0.025, 0.975])
        assert [found[name].low, found[name].high] == pytest.approx(expected), name


def test_a_calibrated_model_is_within_its_control(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    probability = rng.random(300)
    control = calibrated_error(probability)
    drawn = [naive_error(probability, rng.random(300) < probability) for _ in range(100)]
    assert control.value == pytest.approx(np.mean(drawn), rel=0.1)
    assert control.low < np.median(drawn) < control.high
    assert calibration_error(probability, rng.random(300) < probability**3, once(300))[0] > control.high
    monkeypatch.setattr(calibration, "_CHUNK", 1000)
    assert calibrated_error(probability) == control, "chunks together are all draws"


def test_bins_and_curve_hold_all_answers():
    probability, right = given("ties")
    assert [(each.count, each.accuracy) for each in reliability(probability, right)] == [(1, 1), (3, 1 / 3), (2, 0.5)]
    curve = risk_curve(probability, right)
    assert [each.threshold for each in curve] == [0.9, 0.5, 0.1]
    assert [each.coverage for each in curve] == pytest.approx([1 / 3, 5 / 6, 1])
    assert [each.risk for each in curve] == pytest.approx([0.5, 0.6, 0.5])


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("digits", [9, 1])
def test_a_threshold_is_the_lowest_that_reaches_it(wanted: float, digits: int):
    for seed in range(20):
        probability, right = random_answers(30, seed=seed, digits=digits)
        reached = [value for value in probability if right[probability >= value].mean() >= wanted]
        found = fit_threshold(probability, right, wanted)
        assert (found and found.threshold) == (min(reached) if reached else None)


def test_no_threshold():
    assert fit_threshold(*given("all wrong"), 0.8) is None
    assert fit_threshold(np.array([]), np.array([], dtype=bool), 0.8) is None


def test_no_image_is_in_both_halves():
    images = [f"{number % 7}.png" for number in range(40)] + [""] * 9
    halves = split_images(images)
    assert not {image for image, first in zip(images, halves, strict=True) if first and image} & {
        image for image, first in zip(images, halves, strict=True) if not first and image
    }
    assert len({image for image, first in zip(images, halves, strict=True) if first}) in range(2, 7)
    assert 0 < halves[40:].sum() < 9, "a question without an image is on its own"
    assert halves.tolist() == split_images(images).tolist()
    assert any(halves.tolist() != split_images(images, seed).tolist() for seed in range(1, 5))
    backwards = split_images(images[39::-1])
    assert backwards.tolist() == split_images(images[:40])[::-1].tolist(), "the order of questions does not matter"
    assert split_images(["a.png"] * 3).tolist() == [True] * 3
    assert split_images([]).tolist() == []


def test_selection_is_that_of_a_loop_over_images():
    probability, right = random_answers(40)
    accepted, images = probability > 0.9, [f"{number // 2}.png" for number in range(40)]
    accuracy, coverage = estimate_selection(accepted, right, images, num_resamples=50, seed=2)
    assert accuracy.value == right[accepted].mean()
    assert coverage.value == accepted.mean()
    rows, numbers = np.random.default_rng(2).integers(20, size=(50, 20)), np.arange(40) // 2
    shares, rights = [], []
    names = [int(name.removesuffix(".png")) for name in sorted(set(images))]
    for row in rows:
        places = np.concatenate([np.flatnonzero(numbers == names[number]) for number in row])
        shares.append(accepted[places].mean())
        if accepted[places].any():
            rights.append(right[places][accepted[places]].mean())
    assert [coverage.low, coverage.high] == pytest.approx(np.quantile(shares, [0.025, 0.975]))
    assert [accuracy.low, accuracy.high] == pytest.approx(np.quantile(rights, [0.025, 0.975]))


def test_nothing_accepted_has_no_accuracy():
    accuracy, coverage = estimate_selection(np.zeros(3, bool), np.ones(3, bool), ["", "", ""], num_resamples=5)
    assert np.isnan(accuracy.value)
    assert (coverage.value, coverage.low, coverage.high) == (0, 0, 0)
