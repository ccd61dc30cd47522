"""Judges behind an endpoint, against a server that misbehaves."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from pallava.data.clean.filters import Candidate, Filter, Findings
from pallava.data.clean.judges import PathologyEndpoint, SpeciesEndpoint
from pallava.data.sources.base import Pair
from pallava.errors import PallavaError
from pallava.judging.endpoint import Endpoint, UnansweredError
from pallava.judging.prompts import CLIP_VERSION, OTHER_CAPTIONS, PATHOLOGY, PATHOLOGY_CAPTIONS, SPECIES
from tests.tiny.endpoint import Act, StubEndpoint, stub_endpoint

pytestmark = pytest.mark.usefixtures("quick_retries")


def endpoint(server: StubEndpoint, **settings) -> Endpoint:
    return Endpoint(server.url, "judge", concurrency=4, **settings)


def captions(count: int) -> list[Candidate]:
    return [Candidate(Pair("pairs", f"{n}", "a.png", f"caption {n}."), Path("/a.png")) for n in range(count)]


def number_of(text: str) -> int:
    return int(text.rsplit("caption ", 1)[1].rstrip("."))


class Store:
    """What the pipeline does: asks for what is not stored, and stores each score as it comes."""

    def __init__(self) -> None:
        self.scores: dict[str, Findings] = {}

    def run(self, judge: SpeciesEndpoint | PathologyEndpoint, items: Sequence[Candidate]) -> None:
        missing = [item for item in items if judge.item_key(item) not in self.scores]
        for index, score in judge.iter_scores(missing):
            self.scores[judge.item_key(missing[index])] = score


def test_nothing_is_lost_and_nothing_is_asked_twice() -> None:
    """Slow, limited, failing and talking nonsense by turns; one run that fails in part, one that completes it."""
    is_down = True

    def script(text: str, before: int) -> Act:
        number = number_of(text)
        if number % 10 == 9 and is_down:
            return Act(status=503)
        if number % 10 == 1 and not before:
            return Act(status=429, headers={"Retry-After": "0.05"})
        if number % 10 == 2 and not before:
            return Act(status=500)
        if number % 10 == 3:
            return Act("The moon is made of cheese.")
        if number % 10 == 4:
            return Act("context too long", status=400)
        return Act("non-human" if number % 2 else "Human.", delay=0.03 if number % 10 == 5 else 0.0)

    items, store = captions(40), Store()
    with stub_endpoint(script) as server:
        with pytest.raises(UnansweredError, match="4 of 40 requests to the model 'judge'.*503.*run the same command"):
            store.run(SpeciesEndpoint(endpoint(server, max_retries=1)), items)
        assert len(store.scores) == 36
        is_down = False
        store.run(SpeciesEndpoint(endpoint(server, max_retries=1)), items)
        assert max(server.answered.values()) == 1
        assert server.answered.total() == 36  # all but those that the server refuses
        judge = SpeciesEndpoint(endpoint(server))
        total = server.prompts.total()
        store.run(judge, items)
        assert server.prompts.total() == total
    scores = [store.scores[judge.item_key(item)] for item in items]
    assert [score["answer"] for score in scores] == [
        {3: "unreadable", 4: "refused"}.get(n % 10, "non-human" if n % 2 else "human") for n in range(40)
    ]
    reasons = [judge.decide(item, score).reason for item, score in zip(items, scores, strict=True)]
    counts = {reason: reasons.count(reason) for reason in set(reasons)}
    assert counts == {"": 16, "non_human": 16, "unreadable_reply": 4, "refused_by_server": 4}
    assert scores[3]["reply"] == "The moon is made of cheese."


def test_each_score_comes_with_its_index() -> None:
    delays = [0.1, 0.0, 0.05, 0.0]
    answers = ["human", "non-human", "human", "non-human"]
    with stub_endpoint(lambda text, before: Act(answers[number_of(text)], delay=delays[number_of(text)])) as server:
        scores = dict(SpeciesEndpoint(endpoint(server)).iter_scores(captions(4)))
    assert [scores[index]["answer"] for index in range(4)] == answers


def test_pathology_sends_the_image_and_names_its_bytes(tmp_path: Path) -> None:
    for name, colour in (("a", "pink"), ("b", "black")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    items = [Candidate(Pair("pairs", name, f"{name}.png", name), tmp_path / f"{name}.png") for name in "abc"]
    with stub_endpoint(lambda text, before: Act("no, it is a chart" if before else "Yes")) as server:
        judge = PathologyEndpoint(Endpoint(server.url, "judge", concurrency=1))
        scores = [score for _, score in judge.iter_scores(items[:2])]
    assert [judge.decide(item, score).reason for item, score in zip(items, scores, strict=False)] == [
        "",
        "not_pathology",
    ]
    kinds = [[part["type"] for part in request["messages"][0]["content"]] for request in server.requests]
    assert kinds == [["image_url", "text"]] * 2
    keys = [judge.item_key(item) for item in items]
    assert keys[0] == keys[2] != keys[1]
    assert judge.item_key(Candidate(items[0].record, Path("/gone"), {"sha256": keys[0]})) == keys[0]
    with pytest.raises(PallavaError, match="put the filter 'image' first"):
        judge.item_key(Candidate(items[0].record, Path("/gone")))


def test_are_filters_whose_key_names_model_and_prompt() -> None:
    local, other = Endpoint("http://a/v1", "glm"), Endpoint("http://b/v1", "qwen")
    for judge in (SpeciesEndpoint, PathologyEndpoint):
        assert isinstance(judge(local), Filter)
        assert judge(local).is_costly
        assert judge(local).key != judge(other).key
        assert judge(local).key == judge(Endpoint("http://elsewhere/v1", "glm")).key  # the same model on another server
    small = Endpoint("http://a/v1", "glm", image_side=224)
    assert PathologyEndpoint(local).key != PathologyEndpoint(small).key


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("human", "human"),
        ("Human.", "human"),
        ("**human**", "human"),
        ("Answer: human", "human"),
        ("The answer is human.", "human"),
        ("non-human", "non-human"),
        ("Non human", "non-human"),
        ("Nonhuman (mouse)", "non-human"),
        ("This is not human.", "non-human"),
        ("The image shows mouse tissue, so: non-human", "non-human"),
        ("The text mentions no species, so human", "human"),
        ("Human, not non-human", "human"),
        ("<think>non-human? no.</think>\n\nhuman", "human"),
        ("<THINKING>non-human?</THINKING><answer>human</answer></s>", "human"),
        ("<think>is it human or", None),
        ("It may be human or non-human.", None),
        ("mouse", None),
        ("", None),
        ("humanity", None),
    ],
)
def test_replies_on_species(reply: str, label: str | None) -> None:
    assert SPECIES.read(reply) == label


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("yes", "yes"),
        ("Yes, it is an H&E section; there is no chart.", "yes"),
        ("No.", "no"),
        ("no - a chest X-ray", "no"),
        ("Answer: yes", "yes"),
        ("I would say yes", "yes"),
        ("yes and no", "yes"),
        ("This could be yes or no", None),
        ("I cannot tell", None),
        ("Normal tissue", None),
        ("", None),
    ],
)
def test_replies_on_pathology(reply: str, label: str | None) -> None:
    assert PATHOLOGY.read(reply) == label


def test_wordings_are_pinned() -> None:
    """A changed wording needs a new version, since scores are stored under it; then these hashes change with it."""
    clip = "\n".join([*PATHOLOGY_CAPTIONS, "", *OTHER_CAPTIONS])
    pinned = {
        "species": (SPECIES.version, sha256(SPECIES.text.encode()).hexdigest()[:16]),
        "pathology": (PATHOLOGY.version, sha256(PATHOLOGY.text.encode()).hexdigest()[:16]),
        "clip": (CLIP_VERSION, sha256(clip.encode()).hexdigest()[:16]),
    }
    assert pinned == {
        "species": (1, "7086a81eabe72a52"),
        "pathology": (1, "237ebed927b0cea6"),
        "clip": (1, "9f9313693b078c08"),
    }
