"""The judge of captions and answers, against a server that misbehaves."""

import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pallava.errors import PallavaError
from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answer, Item
from pallava.evaluation.answers.similarity import Judgement, judge, score_judgements
from pallava.io.store import Store
from pallava.judging.endpoint import Endpoint, UnansweredError
from pallava.judging.prompts import ANSWER_SIMILARITY, CAPTION_SIMILARITY, read_grade
from tests.tiny.endpoint import Act, StubEndpoint, stub_endpoint

pytestmark = pytest.mark.usefixtures("quick_retries")


def caption(number: int, answer: str) -> Answer:
    return Answer(Item(f"c{number}", "", "Describe it.", f"reference {number}", "caption"), answer)


def run(server: StubEndpoint, answered: list[Answer], folder: Path, **settings) -> list[Judgement]:
    endpoint = Endpoint(server.url, "judge", concurrency=4, **settings)
    with Store(folder / "grades.sqlite") as store:
        return judge(answered, endpoint, store)


def number_of(text: str) -> int:
    return int(text.rsplit("caption ", 1)[1])


def test_nothing_is_lost_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    is_down = True

    def script(text: str, before: int) -> Act:
        number = number_of(text)
        if number % 10 == 9 and is_down:
            return Act(status=503)
        if number % 10 == 1 and not before:
            return Act(status=429, headers={"Retry-After": "0.05"})
        if number % 10 == 2 and not before:
            return Act(hang_up=True)
        if number % 10 == 3:
            return Act("I would rather not say.")
        if number % 10 == 4:
            return Act("content rule", status=400)
        return Act(f"{number % 10}/10")

    answered = [caption(n, "" if n % 10 == 7 else f"caption {n}") for n in range(30)]
    with stub_endpoint(script) as server:
        with pytest.raises(UnansweredError, match="3 of 27 requests.*run the same command"):
            run(server, answered, tmp_path, max_retries=1)
        assert server.answered.total() == 21  # all but those that are down, refused or empty
        is_down = False
        judgements = run(server, answered, tmp_path, max_retries=1)
        assert max(server.answered.values()) == 1
        total = server.prompts.total()
        assert run(server, answered, tmp_path) == judgements
        assert server.prompts.total() == total
    assert [each.id for each in judgements] == [each.item.id for each in answered]
    assert [each.verdict for each in judgements[:10]] == [
        {3: "unreadable", 4: "refused", 7: "empty"}.get(n, "graded") for n in range(10)
    ]
    assert [each.grade for each in judgements[10:20]] == [0, 1, 2, None, None, 5, 6, 0, 8, 9]
    assert judgements[3].reply == "I would rather not say."
    assert "content rule" in judgements[4].reply


def test_what_the_judge_is_shown(tmp_path: Path) -> None:
    answered = [
        Answer(Item("1", "", "Describe it.", "a gland", "caption"), "gland {reference}"),
        Answer(Item("2", "", "What is it?", "B", "choice", ("fat", "a vessel")), "B: a vessel"),
        Answer(Item("3", "", "Is it fat?", "no", "closed"), "no"),
        Answer(Item("4", "other.png", "Describe it!", "a gland", "caption"), " gland {reference}\n"),
    ]
    with stub_endpoint(lambda text, before: Act("10")) as server:
        assert [each.grade for each in run(server, answered, tmp_path)] == [10] * 4
        prompts = server.prompts
    assert len(prompts) == 3, "equal captions with equal references are one question to the judge"
    assert prompts[CAPTION_SIMILARITY.text.replace("{reference}", "a gland").replace("{answer}", "gland {reference}")]
    ends = {text.split("\n\n")[-1] for text in prompts}
    assert "Question: What is it?\nRight answer: B: a vessel\nAnswer of the model: B: a vessel" in ends
    assert "Question: Is it fat?\nRight answer: no\nAnswer of the model: no" in ends


def test_another_judge_is_asked_anew(tmp_path: Path) -> None:
    with stub_endpoint(lambda text, before: Act("3"), models=("judge", "other")) as server:
        run(server, [caption(1, "caption 1")], tmp_path)
        with Store(tmp_path / "grades.sqlite") as store:
            judge([caption(1, "caption 1")], Endpoint(server.url, "other"), store)
        assert [request["model"] for request in server.requests] == ["judge", "other"]


def test_the_score_is_the_mean_grade() -> None:
    grades = [0.0, 4.5, 9.0, 10.0]
    judgements = [Judgement(str(n), grade, "graded") for n, grade in enumerate(grades)]
    judgements += [Judgement("e", 0.0, "empty"), Judgement("u", None, "unreadable"), Judgement("r", None, "refused")]
    scored = score_judgements(judgements, [""] * 7, num_resamples=200, seed=1)
    values = np.array([*grades, 0.0])
    (drawn,) = metrics.draw(5, 200, 1)
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    similarity = scored["scores"]["similarity"]
    assert (similarity["value"], similarity["low"], similarity["high"]) == pytest.approx((values.mean(), low, high))
    assert similarity["count"] == 5
    numbers = [scored[f"num_{name}"] for name in ("questions", "unanswered", "unreadable", "refused")]
    assert numbers == [7, 1, 1, 1]
    assert {grade: count for grade, count in scored["grades"].items() if count} == {"0": 2, "5": 1, "9": 1, "10": 1}
    assert list(scored["grades"]) == [str(grade) for grade in range(11)]
    assert math.isnan(score_judgements(judgements[5:], [""] * 2)["scores"]["similarity"]["value"])


def test_answers_about_one_image_are_not_taken_for_independent() -> None:
    drawn = np.random.default_rng(0).integers(11, size=60)
    one = [Judgement(str(n), float(grade), "graded") for n, grade in enumerate(drawn)]
    images = [f"{n}.png" for n in range(60)]
    few, many = (score_judgements(one * n, images * n, num_resamples=200)["scores"]["similarity"] for n in (1, 10))
    assert many | {"count": 60} == pytest.approx(few)
    assert many["high"] - many["low"] > 1


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("8", 8),
        ("10", 10),
        ("0", 0),
        ("**7.5**", 7.5),
        ("8/10", 8),
        ("8 out of 10.", 8),
        ("Score: 8", 8),
        ("**Score:** 9/10", 9),
        ("Grade (0-10): 5", 5),
        ("The final similarity score is 4.", 4),
        ("I would rate it 7 on a scale of 0 to 10.", 7),
        ("Rating from 0 to 10: 3", 3),
        ("7, since both name 2 glands", 7),
        ("6\n\nBoth say grade 3 carcinoma.", 6),
        ("Both say grade 3 carcinoma.\n\nScore: 8", 8),
        ("The candidate is close.\n**8**", 8),
        ("<think>5? or 6?</think> 4", 4),
        ("5? or 6?</think>\n4", 4),
        ("<answer>4</answer><|im_end|>", 4),
        ("<think>5", None),
        ("11", None),
        ("-3", None),
        ("Grade: - 3", None),
        ("85%", None),
        ("7,5", None),
        ("1.2.3", None),
        ("3-4", None),
        ("3 to 4", None),
        ("between 3 and 4", None),
        ("3 findings of 5 agree", None),
        ("Both say grade 3 carcinoma.", None),
        ("Gleason score 7 in both", None),
        ("0 to 10", None),
        ("seven", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_replies(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


def test_wordings_are_pinned() -> None:
    """A changed wording needs a new version, since grades are stored under it; then these hashes change with it."""
    prompts = (CAPTION_SIMILARITY, ANSWER_SIMILARITY)
    assert [(each.version, sha256(each.text.encode()).hexdigest()[:16]) for each in prompts] == [
        (1, "81e5b6c132efd5db"),
        (1, "a87c39a51cb98e65"),
    ]


def test_a_dying_server_is_told(tmp_path: Path) -> None:
    with (
        stub_endpoint(lambda text, before: Act("5"), models=("other",)) as server,
        pytest.raises(PallavaError, match="'judge'.*other"),
    ):
        run(server, [caption(1, "caption 1")], tmp_path)
