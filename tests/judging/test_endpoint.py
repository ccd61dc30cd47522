"""One client for endpoints: nothing is lost to a bad neighbour, and a user is told what is wrong."""

import base64
import io
import socket
import time
from pathlib import Path

import pytest
from PIL import Image

from pallava.errors import PallavaError
from pallava.judging.endpoint import Answer, Endpoint, Request, UnansweredError
from tests.tiny.endpoint import Act, StubEndpoint, stub_endpoint


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, dead_proxies: None) -> None:
    for name in ("PALLAVA_ENDPOINT_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: StubEndpoint, **settings) -> Endpoint:
    return Endpoint(server.url, "judge", **settings)


def ask(client: Endpoint, requests: list[Request]) -> list[Answer]:
    answers = dict(client._iter_answers(requests))
    return [answers[index] for index in range(len(requests))]


def texts(count: int) -> list[Request]:
    return [Request(f"q{number}") for number in range(count)]


def test_replies_come_in_order_though_the_first_is_the_slowest() -> None:
    with stub_endpoint(lambda text, before: Act(text.upper(), delay=0.2 if text == "q0" else 0.0)) as server:
        assert ask(endpoint(server), texts(6)) == [Answer(f"Q{number}") for number in range(6)]


def test_as_many_requests_at_once_as_allowed() -> None:
    with stub_endpoint(lambda text, before: Act("x", delay=0.2)) as server:
        ask(endpoint(server, concurrency=3), texts(9))
    assert server.num_at_once == 3


@pytest.mark.usefixtures("quick_retries")
def test_errors_that_pass_are_tried_again() -> None:
    acts = [Act(status=500), Act(status=503), Act(hang_up=True), Act("fine")]
    with stub_endpoint(lambda text, before: acts[before]) as server:
        assert ask(endpoint(server), [Request("q")]) == [Answer("fine")]
    assert server.prompts["q"] == 4


def test_a_rate_limit_is_waited_for() -> None:
    limit = Act(status=429, headers={"Retry-After": "1"})
    with stub_endpoint(lambda text, before: Act("fine") if before else limit) as server:
        assert ask(endpoint(server), [Request("q")]) == [Answer("fine")]
    first, second = server.times["q"]
    assert second - first >= 1.0  # without the header it would be half a second


@pytest.mark.usefixtures("quick_retries")
def test_one_unlucky_request_does_not_lose_the_others() -> None:
    with stub_endpoint(lambda text, before: Act(status=500) if text == "q3" else Act("fine")) as server:
        answers = ask(endpoint(server, max_retries=1), texts(8))
    assert [not answer.failure for answer in answers] == [number != 3 for number in range(8)]
    assert "500" in answers[3].text
    assert answers[3].failure == "passing"


def test_a_request_that_takes_too_long_fails_alone() -> None:
    with stub_endpoint(lambda text, before: Act("fine", delay=6.0 if text == "q1" else 0.0)) as server:
        answers = ask(endpoint(server, timeout=2, max_retries=0), texts(3))
    assert answers[0] == answers[2] == Answer("fine")
    assert answers[1] == Answer("no answer within 2 seconds, 1 times", "passing")


def test_what_the_server_refuses_is_not_asked_again() -> None:
    with stub_endpoint(lambda text, before: Act("too long", status=400) if text == "q1" else Act("fine")) as server:
        answers = ask(endpoint(server), texts(3))
    assert answers[1].failure == "refused"
    assert "too long" in answers[1].text
    assert server.prompts["q1"] == 1


def test_a_server_that_refuses_everything_is_told() -> None:
    refusal = pytest.raises(PallavaError, match="refuses every request.*reads no images")
    with stub_endpoint(lambda text, before: Act("this model reads no images", status=400)) as server, refusal:
        ask(endpoint(server, concurrency=2), texts(100))
    assert sum(server.prompts.values()) < 10


def test_refusals_of_a_server_that_refuses_everything_are_not_settled() -> None:
    with stub_endpoint(lambda text, before: Act("no images", status=400)) as server:
        settled = endpoint(server, concurrency=2).iter_settled(texts(100))
        with pytest.raises(PallavaError, match="refuses every request"):
            next(settled)
        settled = endpoint(server).iter_settled(texts(2))
        with pytest.raises(UnansweredError, match="2 of 2 requests.*no images"):
            next(settled)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_first_requests_may_be_those_that_are_refused(count: int) -> None:
    """That a harmless one is answered tells that the others are at fault."""
    refused = {request.text for request in texts(min(count, 3))}
    with stub_endpoint(lambda text, before: Act("too long", status=400) if text in refused else Act("fine")) as server:
        settled = dict(endpoint(server, concurrency=1).iter_settled(texts(count)))
    assert [bool(settled[number].failure) for number in range(count)] == [n < 3 for n in range(count)]


@pytest.mark.parametrize("body", ["<html>hello</html>", "{}", '{"choices": []}', "[1]", '"x"'])
def test_a_body_that_is_no_completion_is_a_failure(body: str) -> None:
    with stub_endpoint(lambda text, before: Act(body=body)) as server:
        (answer,) = ask(endpoint(server), [Request("q")])
    assert answer.failure == "passing"


def test_a_reply_without_text_is_an_empty_reply() -> None:
    body = '{"id": "1", "object": "x", "created": 0, "model": "m", "choices": [{"message": {"content": null}}]}'
    with stub_endpoint(lambda text, before: Act(body=body)) as server:
        assert ask(endpoint(server), [Request("q")]) == [Answer("")]


@pytest.mark.usefixtures("quick_retries")
def test_no_server_at_all() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(PallavaError, match=r"cannot reach http://127.0.0.1.*is the server running"):
        ask(Endpoint(url, "judge", max_retries=1), texts(50))


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_dies_is_told_after_the_answers_it_gave() -> None:
    with stub_endpoint(lambda text, before: Act("fine") if text in ("q0", "q1") else Act(status=503)) as server:
        seen: list[tuple[int, Answer]] = []
        with pytest.raises(PallavaError, match="stopped answering: the last 8 requests failed.*503"):
            seen.extend(endpoint(server, concurrency=2, max_retries=0)._iter_answers(texts(50)))
    assert sum(not answer.failure for _, answer in seen) == sum(server.answered.values()) >= 2
    assert sum(server.prompts.values()) < 15


def test_answers_under_way_are_given_out_before_the_end() -> None:
    """The model is taken away while other requests are still being answered."""
    script = {"q0": Act(status=404), "q1": Act("late", delay=0.5), "q2": Act("late", delay=0.5)}
    seen: list[tuple[int, Answer]] = []
    with stub_endpoint(lambda text, before: script[text]) as server:
        with pytest.raises(PallavaError, match="404"):
            seen.extend(endpoint(server)._iter_answers(texts(3)))
        assert server.answered.total() == 2
    assert sorted(seen, key=lambda each: each[0]) == [(1, Answer("late")), (2, Answer("late"))]


def test_failures_among_answers_do_not_end_the_run() -> None:
    with stub_endpoint(lambda text, before: Act(status=503) if int(text[1:]) % 2 else Act("fine")) as server:
        answers = ask(endpoint(server, concurrency=1, max_retries=0), texts(40))
    assert sum(answer.failure == "passing" for answer in answers) == 20


def test_an_unknown_model_is_told_with_those_that_there_are() -> None:
    no_model = pytest.raises(PallavaError, match="'judge'.*glm-4v-9b, qwen2")
    with stub_endpoint(lambda text, before: Act("x"), models=("glm-4v-9b", "qwen2")) as server, no_model:
        ask(endpoint(server), texts(3))


def test_a_wrong_key_is_told() -> None:
    wrong_key = pytest.raises(PallavaError, match="does not accept the key.*PALLAVA_ENDPOINT_KEY")
    with stub_endpoint(lambda text, before: Act("bad key", status=401)) as server, wrong_key:
        ask(endpoint(server), texts(3))


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({}, "none"),
        ({"OPENAI_API_KEY": "second"}, "second"),
        ({"OPENAI_API_KEY": "second", "PALLAVA_ENDPOINT_KEY": "first"}, "first"),
    ],
)
def test_the_key_comes_from_the_environment(
    variables: dict[str, str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with stub_endpoint(lambda text, before: Act("x")) as server:
        ask(endpoint(server), [Request("q")])
    assert server.keys == {f"Bearer {key}"}


@pytest.mark.parametrize(("size", "sent"), [((900, 300), (90, 30)), ((30, 60), (30, 60))])
def test_images_are_scaled_to_the_side(size: tuple[int, int], sent: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, "pink").save(tmp_path / "i.png")
    with stub_endpoint(lambda text, before: Act("x")) as server:
        assert ask(endpoint(server, image_side=90), [Request("what?", tmp_path / "i.png")]) == [Answer("x")]
    image, text = server.requests[0]["messages"][0]["content"]
    assert text["text"] == "what?"
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == sent


def test_an_image_that_cannot_be_opened_fails_alone(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "i.png")
    names = ["no.png", "nor.png", "neither.png", "i.png"]
    with stub_endpoint(lambda text, before: Act("x")) as server:
        answers = ask(endpoint(server, concurrency=1), [Request("?", tmp_path / name) for name in names])
    assert [answer.failure for answer in answers] == ["final"] * 3 + [""]


def test_closing_early_ends_the_threads() -> None:
    with stub_endpoint(lambda text, before: Act("x")) as server:
        answers = endpoint(server, concurrency=2)._iter_answers(texts(500))
        next(answers)
        start = time.monotonic()
        answers.close()
    assert time.monotonic() - start < 5
    assert sum(server.prompts.values()) < 20


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(PallavaError, match="localhost:8000"):
        Endpoint("localhost:8000", "judge")
    with pytest.raises(PallavaError, match="concurrency=0"):
        Endpoint("http://localhost", "judge", concurrency=0)
