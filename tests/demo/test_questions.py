from collections import Counter

import numpy as np
import pytest

from pallava.demo.micrographs import Facts, Region, random_facts
from pallava.demo.questions import (
    ATTRIBUTES,
    CLOSED,
    FINE_DETAIL,
    OPEN,
    caption,
    held_out_questions,
    training_turns,
    view_caption,
)

FACTS = [random_facts(np.random.default_rng(seed)) for seed in range(240)]
ONE = Facts("PAS", "dense", 4, necrosis=True, inflammation=False, mitosis=True)


@pytest.fixture(scope="module")
def asked():
    pictures = {str(number): facts for number, facts in enumerate(FACTS)}
    return held_out_questions(pictures, np.random.default_rng(0), closed_per_kind=68, open_per_kind=72)


def test_at_least_600_questions_on_every_attribute(asked):
    assert len(asked) >= 600
    counts = Counter(q["group"] for q in asked)
    assert set(counts) == set(ATTRIBUTES)
    assert min(counts.values()) >= 36


def test_no_answer_of_a_closed_question_is_above_55_percent(asked):
    for wording in {q["question"] for q in asked if q["kind"] == "closed"}:
        answers = Counter(q["answer"] for q in asked if q["question"] == wording)
        assert set(answers) == {"yes", "no"}
        assert max(answers.values()) <= 0.55 * answers.total(), wording


def test_answers_are_true(asked):
    wordings = {wording: kind for kind in (*CLOSED, *OPEN) for wording in kind.test}
    assert all(wordings[q["question"]].answer(FACTS[int(q["image"])]) == q["answer"] for q in asked)


def test_training_and_test_share_no_wording():
    train = {wording.lower() for kind in (*CLOSED, *OPEN) for wording in kind.train}
    test = {wording.lower() for kind in (*CLOSED, *OPEN) for wording in kind.test}
    assert not train & test


def test_training_turns_are_true_and_balanced():
    wordings = {wording: kind for kind in (*CLOSED, *OPEN) for wording in kind.train}
    rng, closed = np.random.default_rng(1), Counter()
    for facts in FACTS:
        turns = training_turns(facts, rng, 6)
        assert {wordings[question].attribute for question, _ in turns} == set(ATTRIBUTES)
        for question, answer in turns:
            assert wordings[question].answer(facts) == answer
            if wordings[question].closed:
                closed[answer] += 1
    assert 0.45 < closed["yes"] / closed.total() < 0.55


def test_short_conversations_ask_for_the_fine_detail_and_for_nothing_twice():
    wordings = {wording: kind for kind in (*CLOSED, *OPEN) for wording in kind.train}
    rng, asked = np.random.default_rng(1), Counter()
    for facts in FACTS:
        attributes = [wordings[question].attribute for question, _ in training_turns(facts, rng, 3)]
        assert len(attributes) == len(set(attributes)) == 3
        asked.update(attributes)
    assert asked[FINE_DETAIL] == len(FACTS)
    assert min(asked[name] for name in ATTRIBUTES) > 60  # 96 on average


def test_a_bag_of_a_captions_words_tells_every_fact():
    """Each value of an attribute has a word that no caption without it has."""
    bags = [(facts, set(caption(facts).strip(".").replace(",", "").split())) for facts in FACTS]
    for name in ATTRIBUTES:
        for value in {getattr(facts, name) for facts in FACTS}:
            own = set.intersection(*(bag for facts, bag in bags if getattr(facts, name) == value))
            others = set.union(*(bag for facts, bag in bags if getattr(facts, name) != value))
            assert own - others, (name, value)


def test_captions_name_every_fact():
    assert caption(ONE) == "PAS stain, dense nuclei, four glands, necrosis, quiet, mitotic bars."


def test_the_overviews_caption_does_not_name_what_its_scaling_hides():
    regions = [Region("gland", 5, 5, 3), Region("figure", 9, 9, 2)]
    assert view_caption(ONE, regions, overview=False) == (
        "tile PAS dense glands one necrosis no inflammation no mitotic bars"
    )
    assert "mitotic" not in view_caption(ONE, regions, overview=True)


def test_a_caption_on_figures_names_nothing_else_where_there_is_one():
    regions = [Region("gland", 5, 5, 3), Region("figure", 9, 9, 2)]
    assert view_caption(ONE, regions, overview=False, on_figures=True) == "mitotic bars"
    without = view_caption(ONE, regions[:1], overview=False, on_figures=True)
    assert without == "tile PAS dense glands one necrosis no inflammation no"
