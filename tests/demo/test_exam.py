import pytest
import torch

from pallava.demo.exam import repeat_overview, summary
from pallava.evaluation.answers.consistency import share_by_group
from pallava.evaluation.answers.items import AS_IS, SHUFFLED, Answer, AnswerSet, Item
from pallava.evaluation.answers.scores import score_questions

QUESTIONS = [
    Item("0", "a.png", "Is necrosis present?", "yes", "closed", group="necrosis"),
    Item("1", "b.png", "Is necrosis present?", "no", "closed", group="necrosis"),
    Item("2", "b.png", "What is the stain?", "PAS", "open", group="stain"),
    Item("3", "c.png", "Do you see mitosis?", "yes", "closed", group="mitosis"),
]


def answered(*answers: str) -> list[Answer]:
    return [Answer(item, answer) for item, answer in zip(QUESTIONS, answers, strict=True)]


def test_the_report_takes_its_figures_from_the_evaluation():
    own = answered("Yes", "no", "pas.", "no")
    shuffled = answered("no", "no", "H&E", "yes")
    result = score_questions(AnswerSet({AS_IS: own, SHUFFLED: shuffled}), num_resamples=10)
    result["groups"] = share_by_group(own, lambda a: a.text.lower().strip(".") == a.item.reference.lower())
    report = summary(result, [Answer(QUESTIONS[3], "yes")])
    assert report["closed_accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert report["closed_accuracy_shuffled"] == pytest.approx(2 / 3, abs=1e-4)
    assert report["closed_accuracy_majority"] == pytest.approx(2 / 3, abs=1e-4)
    assert report["open_exact_match"] == 1
    assert report["attribute_accuracy"] == {"necrosis": 1, "stain": 1, "mitosis": 0}
    assert report["fine_detail_accuracy"] == {"with_tiles": 0, "tiles_replaced_by_overview": 1}
    assert report["num_questions"] == 4


def test_tiles_become_the_overview():
    pixels = torch.arange(7.0).view(7, 1, 1, 1)
    assert repeat_overview(pixels, torch.tensor([3, 4])).flatten().tolist() == [0, 0, 0, 3, 3, 3, 3]
