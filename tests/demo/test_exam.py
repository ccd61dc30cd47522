import torch

from pallava.demo.exam import is_right, repeat_overview, score, shuffled
from pallava.demo.questions import TestQuestion

QUESTIONS = [
    TestQuestion(0, "necrosis", "Is necrosis present?", "yes", True),
    TestQuestion(1, "necrosis", "Is necrosis present?", "no", True),
    TestQuestion(1, "stain", "What is the stain?", "PAS", False),
    TestQuestion(2, "mitosis", "Do you see mitosis?", "yes", True),
]


def test_scores():
    report = score(QUESTIONS, ["Yes", "no", "pas.", "no"], ["no", "no", "yes"], ["yes"])
    assert report["closed_accuracy"] == round(2 / 3, 4)
    assert report["closed_accuracy_shuffled"] == round(2 / 3, 4)
    assert report["closed_accuracy_majority"] == round(2 / 3, 4)
    assert report["open_exact_match"] == 1
    assert report["attribute_accuracy"]["necrosis"] == 1
    assert report["fine_detail_accuracy"] == {"with_tiles": 0, "tiles_replaced_by_overview": 1}
    assert report["num_questions"] == 4


def test_only_the_exact_answer_is_right():
    assert is_right(" Yes. ", "yes")
    assert not is_right("yes, it is", "yes")


def test_no_question_keeps_its_picture_when_shuffled():
    assert all(new != q.picture for new, q in zip(shuffled(QUESTIONS, 3), QUESTIONS, strict=True))


def test_tiles_become_the_overview():
    pixels = torch.arange(7.0).view(7, 1, 1, 1)
    assert repeat_overview(pixels, torch.tensor([3, 4])).flatten().tolist() == [0, 0, 0, 3, 3, 3, 3]
