"""Images shown otherwise, and how often an answer stays the same."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pallava.evaluation.answers.consistency import (
    UNCHANGED_MEANING,
    score_consistency,
    share,
    share_by_group,
    shuffle_images,
)
from pallava.evaluation.answers.items import Answer, Item
from pallava.transforms import shift_stains


def item(number: int, image: str = "a.png", group: str = "") -> Item:
    return Item(str(number), image, "q", "yes", "closed", group=group)


def answers_of(*answers: str) -> list[Answer]:
    return [Answer(item(number), answer) for number, answer in enumerate(answers)]


def is_yes(answered: Answer) -> bool:
    return answered.text == "yes"


def test_no_question_keeps_its_image_and_all_are_shown_as_often():
    items = [item(number, f"{number % 3}.png") for number in range(9)] + [item(9, "")]
    shuffled = shuffle_images(items, seed=1)
    assert [each.id for each in shuffled] == [str(number) for number in range(9)]
    assert all(new.image != old.image for new, old in zip(shuffled, items, strict=False))
    assert Counter(each.image for each in shuffled) == Counter(each.image for each in items[:9])
    assert shuffled == shuffle_images(items, seed=1)
    assert shuffle_images([item(0), item(1)]) == []


def test_views_change_what_they_say():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    shown = {view: np.asarray(change(image)) for view, change in UNCHANGED_MEANING.items()}
    assert shown["half_size"].shape == (10, 15, 3)
    assert shown["double_size"].shape == (40, 60, 3)
    for name, expected in {
        "rotated_90": np.rot90(pixels),
        "rotated_180": np.rot90(pixels, 2),
        "rotated_270": np.rot90(pixels, 3),
        "mirrored": pixels[:, ::-1],
        "upside_down": pixels[::-1],
    }.items():
        assert (shown[name] == expected).all(), name
    assert len(shown) == 8
    assert UNCHANGED_MEANING["half_size"](Image.new("RGB", (1, 1))).size == (1, 1)


def test_a_stain_shift_is_seen_but_small():
    image = Image.new("RGB", (4, 4), (180, 120, 170))
    change = np.asarray(shift_stains(image)).astype(int) - np.asarray(image)
    assert 2 < abs(change).max() < 30
    assert abs(change - change[0, 0]).max() == 0


def test_shares_of_equal_and_of_right_answers():
    as_is = answers_of("yes", "No.", "two glands", "")
    changed = {"mirrored": answers_of("yes", "no", "two  Glands!", "")}
    changed |= {"half_size": answers_of("no", "no", "two", "none")}
    result = score_consistency(as_is, changed, is_yes, num_resamples=50)
    assert {name: each["value"] for name, each in result["same"].items()} == {
        "mirrored": 1.0,
        "half_size": 0.25,
        "all": 0.25,
    }
    assert {name: each["value"] for name, each in result["accuracy"].items()} == {
        "unchanged": 0.25,
        "mirrored": 0.25,
        "half_size": 0.0,
    }
    assert "accuracy" not in score_consistency(as_is, changed, num_resamples=50)


def test_questions_without_an_image_are_not_in_the_share():
    result = score_consistency(answers_of("yes", "no", "no"), {"mirrored": answers_of("yes", "no")}, num_resamples=50)
    assert result["same"]["all"]["count"] == 2


def test_an_image_that_cannot_be_opened_is_no_consistent_answer():
    as_is = [Answer(item(0, "broken.png"), ""), *answers_of("", "yes", "", "no")[1:]]
    changed = {"mirrored": [Answer(each.item, "" if number != 1 else "no") for number, each in enumerate(as_is)]}
    result = score_consistency(as_is, changed, is_yes, unopened={"broken.png"}, num_resamples=50)
    assert (result["same"]["mirrored"]["value"], result["same"]["mirrored"]["count"]) == (pytest.approx(1 / 3), 3)
    assert (result["same"]["all"]["count"], result["accuracy"]["unchanged"]["count"]) == (3, 3)
    assert result["num_empty"] == {"unchanged": 1, "mirrored": 2}
    assert result["num_left_out"] == 1


def test_a_share_has_its_interval():
    answers = [Answer(item(number, f"{number}.png"), "") for number in range(40)]
    estimate = share([True] * 30 + [False] * 10, answers, "of something")
    assert estimate["value"] == 0.75
    assert 0.5 < estimate["low"] < 0.75 < estimate["high"] < 0.95
    assert (estimate["count"], estimate["definition"]) == (40, "of something")
    assert np.isnan(share([], [], "of nothing")["value"])


def test_questions_about_one_image_are_not_taken_for_independent():
    """Each image ten times: the interval must be that of the images, not a third of it."""
    answers = np.random.default_rng(0).choice(["yes", "no"], 60)
    one = [Answer(item(number, f"{number}.png", "a"), answer) for number, answer in enumerate(answers)]
    many = [replace(each, item=replace(each.item, id=f"{each.item.id}-{n}")) for n in range(10) for each in one]

    def bounds(answered: list[Answer]) -> list[tuple[float, float]]:
        changed = {"mirrored": [Answer(each.item, "yes") for each in answered]}
        found = score_consistency(answered, changed, is_yes, num_resamples=200)
        shares = [found["same"]["mirrored"], found["same"]["all"], found["accuracy"]["unchanged"]]
        shares.append(share_by_group(answered, is_yes, num_resamples=200)["a"])
        return [(each["low"], each["high"]) for each in shares]

    assert bounds(many) == [pytest.approx(each) for each in bounds(one)]
    assert all(high - low > 0.15 for low, high in bounds(many))


def test_groups_in_their_order():
    answered = [
        Answer(item(n, group=g), a) for n, (g, a) in enumerate([("b", "yes"), ("a", "no"), ("b", "no"), ("", "yes")])
    ]
    result = share_by_group(answered, is_yes, num_resamples=50)
    assert list(result) == ["b", "a"]
    assert (result["b"]["value"], result["b"]["count"], result["a"]["value"]) == (0.5, 2, 0.0)
    assert share_by_group(answered[3:], is_yes) == {}
