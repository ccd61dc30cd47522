"""Probabilities of answers are those of the forward pass, and what is made of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pallava.errors import PallavaError
from pallava.evaluation.answers.confidence import WANTED, score_confidence
from pallava.evaluation.answers.generation import Answerer, Batch, ask_all, possible_replies
from pallava.evaluation.answers.items import SHUFFLED, Answer, Item, Kind
from pallava.evaluation.answers.questions import read_custom
from pallava.evaluation.answers.scores import is_right
from pallava.evaluation.answers.store import AnswerStore
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.prompts import build_choice_question
from tests.tiny.answering_model import write_model, write_questions

CHOICES = ("fat", "bone", "skin")
LETTERS = build_choice_question("which ?", CHOICES)


class Fixed(Answerer):
    """Answers with given words, whatever it is asked."""

    def _generate(self, batch: Batch, tokens: list[torch.Tensor]) -> torch.Tensor:
        tokenizer = self.processor.tokenizer
        rows = [tokenizer.convert_tokens_to_ids(words[item.id].split()) for item in batch.items]
        pad = tokenizer.convert_tokens_to_ids("<pad>")
        return torch.tensor([row + [pad] * (max(map(len, rows)) - len(row)) for row in rows])


words: dict[str, str] = {}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    folder = write_model(tmp_path_factory.mktemp("model") / "model")
    model = PALLaVAForConditionalGeneration.from_pretrained(folder).eval()
    return Answerer(model, PALLaVAProcessor.from_pretrained(folder), max_new_tokens=12, confidence=True)


@pytest.fixture
def fixed(answerer: Answerer) -> Fixed:
    return Fixed(answerer.model, answerer.processor, 12, True)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    items = read_custom(write_questions(tmp_path_factory.mktemp("data"), 24)).items
    return [*items, *(replace(item, id=f"{item.id}-text", image="") for item in items[:4])]


def log_probability(answerer: Answerer, item: Item, answer: str) -> tuple[float, int]:
    """Of some words, one forward pass over the question and them, and their number."""
    batch = answerer.prepare([item])
    ids = answerer.processor.tokenizer.convert_tokens_to_ids(answer.split())
    with torch.no_grad():
        tokens = answerer.model.encode_images(batch.tiles) if batch.tiles else []
        whole = torch.cat([batch.prompts["input_ids"], torch.tensor([ids])], dim=1)
        logits = answerer.model.llm(**answerer.model.fuse(whole, tokens)).logits[0, -len(ids) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(ids)), ids].sum()), len(ids)


def as_generated(answerer: Answerer, item: Item) -> tuple[float, int]:
    """Log-probability of an answer's tokens up to its end, as `generate` sees them, and their number."""
    batch = answerer.prepare([item])
    tokens = answerer.model.encode_images(batch.tiles) if batch.tiles else []
    how = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": answerer.max_new_tokens}
    found = answerer.model.generate(**batch.prompts, visual_tokens=tokens, **how)
    each = [step[0].log_softmax(-1).max(0) for step in found.logits]
    ends = [number for number, one in enumerate(each, 1) if int(one.indices) in answerer.processor.end_token_ids]
    count = min([*ends, len(each)])
    return float(sum(one.values for one in each[:count])), count


def test_a_sentence_has_the_geometric_mean_of_its_tokens(answerer: Answerer, items: list[Item]):
    """With its end, if it was not cut before; together as each alone."""
    found = answerer.weigh(answerer.prepare(items))
    assert [each.item for each in found] == items
    assert [each.text for each in found] == answerer.answer(answerer.prepare(items))
    expected = [as_generated(answerer, item) for item in items]
    assert [each.probability for each in found] == pytest.approx(
        [math.exp(total / n) for total, n in expected], abs=1e-5
    )
    assert {each.num_possible for each in found} == {0}
    assert len({each.probability for each in found}) > 20
    lengths = {count for _, count in expected}
    assert max(lengths) == 12 > min(lengths), "answers of one length prove nothing"


def shares(answerer: Answerer, item: Item, possible: Sequence[str]) -> list[float]:
    found = np.exp([log_probability(answerer, item, f"{each} <|im_end|>")[0] for each in possible])
    return (found / found.sum()).tolist()


def test_closed_answers_and_choices_are_weighed_among_the_possible_ones(fixed: Fixed, items: list[Item]):
    """In one batch with others, with images and without."""
    closed = [replace(item, kind="closed") for item in items[:3]]
    choice = replace(items[3], question=f"A. few\nB. many\nC. {items[3].question}", kind="choice")
    opened = replace(items[4], kind="open")
    text = replace(items[-1], kind="closed")
    asked = [*closed, choice, opened, text]
    said = ["yes <|im_end|>", "no <|im_end|>", "yes ? <|im_end|>", "B <|im_end|>", "yes <|im_end|>", "no <|im_end|>"]
    words.update({item.id: each for item, each in zip(asked, said, strict=True)})
    with pytest.MonkeyPatch.context() as patch:
        decode = fixed.processor.batch_decode  # the vocabulary has no letters
        patch.setattr(
            type(fixed.processor),
            "batch_decode",
            lambda self, ids: ["B" if n == 3 else t for n, t in enumerate(decode(ids))],
        )
        found = fixed.weigh(fixed.prepare(asked))
    assert [each.num_possible for each in found] == [2, 2, 0, 3, 0, 2]
    expected = [shares(fixed, asked[number], ["yes", "no"])[place] for number, place in ((0, 0), (1, 1), (5, 1))]
    assert [found[number].probability for number in (0, 1, 5)] == pytest.approx(expected, abs=1e-5)
    assert found[3].probability == pytest.approx(1 / 3), "letters that the vocabulary does not have are one token"
    for number in (2, 4):
        total, count = log_probability(fixed, asked[number], said[number])
        assert found[number].probability == pytest.approx(math.exp(total / count), abs=1e-5)


def test_a_possible_answer_that_was_cut_is_not_one(fixed: Fixed, items: list[Item]):
    item = replace(items[0], kind="closed")
    words[item.id] = "yes"
    (found,) = fixed.weigh(fixed.prepare([item]))
    assert (found.text, found.num_possible) == ("yes", 0)
    assert found.probability == pytest.approx(math.exp(log_probability(fixed, item, "yes")[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "question", "text", "expected"),
    [
        ("closed", "is it ?", "Yes", ["Yes", "No"]),
        ("closed", "is it ?", "NO.", ["YES.", "NO."]),
        ("closed", "is it ?", "yes, it is", []),
        ("closed", "is it ?", "", []),
        ("closed", LETTERS, "B", []),
        ("choice", LETTERS, "B", ["A", "B", "C"]),
        ("choice", LETTERS, "b.", ["a.", "b.", "c."]),
        ("choice", LETTERS, "D", []),
        ("choice", LETTERS, "yes", []),
        ("choice", LETTERS, "bone", []),
        ("choice", "which ?", "B", []),
        ("open", "is it ?", "yes", []),
    ],
)
def test_possible_replies(kind: Kind, question: str, text: str, expected: list[str]):
    assert possible_replies(Item("1", "", question, "yes", kind), text) == expected


def test_no_more_rows_at_once_than_questions(fixed: Fixed, items: list[Item]):
    asked = [replace(item, kind="closed", image=items[0].image) for item in items[:6]]
    words.update({item.id: "yes <|im_end|>" for item in asked})
    rows: list[int] = []
    hook = fixed.model.llm.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["attention_mask"])), with_kwargs=True
    )
    found = fixed.weigh(fixed.prepare(asked))
    hook.remove()
    assert rows == [1, 6, 1, 6], "the image's beginning once for three questions with two answers each"
    single = [fixed.weigh(fixed.prepare([item]))[0].probability for item in asked]
    assert [each.probability for each in found] == pytest.approx(single, abs=1e-5)


def test_probabilities_are_stored_of_images_as_they_are(answerer: Answerer, items: list[Item], tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    asked = [*items[:5], replace(items[5], image=str(tmp_path / "broken.png"))]
    for _ in range(2):  # asked, and read again
        with AnswerStore(tmp_path, {}) as store:
            found, _ = ask_all(answerer, asked, store, batch_size=2)
            shuffled, _ = ask_all(answerer, asked, store, view=SHUFFLED, batch_size=2)
        assert [each.probability is None for each in found] == [False] * 5 + [True]
        assert [each.probability for each in shuffled] == [None] * 6


def test_a_probability_that_is_not_a_number_ends_the_evaluation(
    answerer: Answerer, items: list[Item], monkeypatch: pytest.MonkeyPatch
):
    score = answerer.model.score_answers
    monkeypatch.setattr(
        answerer.model, "score_answers", lambda *args, **how: [each * math.nan for each in score(*args, **how)]
    )
    with pytest.raises(PallavaError, match=f"'{items[1].id}'.*got nan"):
        answerer.weigh(answerer.prepare(items[1:3]))


def made(count: int, seed: int = 0) -> list[Answer]:
    """Answers of two kinds, two an image, whose probabilities are right."""
    rng = np.random.default_rng(seed)
    answers = []
    for number in range(count):
        kind: Kind = "closed" if number % 2 else "open"
        probability = float(rng.uniform(0.5, 1))
        text = "yes" if rng.random() < probability else "no"
        item = Item(str(number), f"{number // 2}.png", "?", "yes", kind)
        answers.append(Answer(item, text, probability, 2 * (kind == "closed")))
    return answers


def test_scores_by_kind_and_thresholds_of_the_other_half():
    answers = made(2000)
    result = score_confidence([*answers, replace(answers[0], probability=None)], is_right, num_resamples=50)
    found, thresholds = result["confidence"], result["thresholds"]
    assert found["num_left_out"] == 1
    assert list(found["kinds"]) == list(thresholds["kinds"]) == ["all", "open", "closed"]
    assert [each["count"] for each in found["kinds"].values()] == [2000, 1000, 1000]
    assert [each["num_among"] for each in found["kinds"].values()] == [1000, 0, 1000]
    assert thresholds["num_images"] == [500, 500]
    for each in found["kinds"].values():
        assert each["scores"]["ece"]["value"] < each["controls"]["calibrated"]["ece"]["high"]
        assert sum(one["count"] for one in each["bins"]) == each["count"]
        assert len(each["curve"]) == 101
        assert each["curve"][-1]["coverage"] == 1
        assert each["curve"][-1]["risk"] == pytest.approx(1 - each["scores"]["accuracy"]["value"])
    for each in thresholds["kinds"].values():
        assert [one["wanted"] for one in each] == list(WANTED)
    low, high = thresholds["kinds"]["all"][:2]
    assert low["threshold"] < high["threshold"]
    assert low["coverage"]["value"] > high["coverage"]["value"] > 0
    for one in (low, high):
        assert one["fitted"]["accuracy"] >= one["wanted"]
        assert one["accuracy"]["value"] == pytest.approx(one["wanted"], abs=0.05)
        assert one["accuracy"]["low"] < one["accuracy"]["value"] < one["accuracy"]["high"]


def test_one_half_is_not_fitted_to():
    """On each half of its own right answers are the most probable ones; on the other the wrong ones."""
    answers = made(400)
    halves = score_confidence(answers, is_right, num_resamples=2)["thresholds"]
    assert halves["num_images"] == [100, 100]
    from pallava.evaluation.calibration import split_images

    is_fitted = split_images([each.item.image for each in answers])
    sharp = [
        replace(each, probability=0.9 if is_right(each) == own else 0.6)
        for each, own in zip(answers, is_fitted.tolist(), strict=True)
    ]
    for each in score_confidence(sharp, is_right, num_resamples=2)["thresholds"]["kinds"]["all"][1:]:
        assert (each["threshold"], each["fitted"]["accuracy"]) == (0.9, 1)
        assert each["accuracy"]["value"] == 0


def test_what_is_not_reached_says_so():
    answers = [Answer(Item(str(number), "", "?", "yes", "closed"), "no", 0.9, 2) for number in range(6)]
    result = score_confidence(answers, is_right, num_resamples=2)
    assert list(result["confidence"]["kinds"]) == ["all"]
    for each in result["thresholds"]["kinds"]["all"]:
        assert each["is_reached"] is False
        assert math.isnan(each["threshold"])
        assert each["accuracy"]["count"] == 0


def test_a_single_question_and_two_about_one_image_leave_no_other_half():
    for count in (1, 2):
        answers = [Answer(Item(str(number), "a.png", "?", "yes", "closed"), "yes", 0.9, 2) for number in range(count)]
        result = score_confidence(answers, is_right, num_resamples=2)
        assert result["confidence"]["kinds"]["all"]["scores"]["ece"]["value"] == pytest.approx(0.1)
        assert result["thresholds"]["num_images"] == [1, 0]
        for each in result["thresholds"]["kinds"]["all"]:
            assert each["threshold"] == 0.9
            assert math.isnan(each["accuracy"]["value"])
