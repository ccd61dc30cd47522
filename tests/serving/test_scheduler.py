"""The line of requests: what goes into one batch, what is refused, and what becomes of the others."""

import threading
import time
from typing import Any

import pytest
import torch

from pallava.errors import PallavaError
from pallava.serving.replies import ChatRequest, Reply, TogetherError, UnavailableError
from pallava.serving.scheduler import Scheduler


class Chat:
    """Replies with the number of a request and the size of its batch, once it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.batches: list[list[str]] = []

    def reply(self, requests: list[ChatRequest], **options: Any) -> list[Reply]:
        self.batches.append([request.question for request in requests])
        assert self.may.wait(10)
        if len(requests) > 1 and any(request.question == "large" for request in requests):
            raise TogetherError("too large")
        if any(request.question == "bad" for request in requests):
            raise PallavaError("a bad one")
        return [Reply(f"{request.question} {options}") for request in requests]


def request(question: str) -> ChatRequest:
    return ChatRequest(question, [1], (), 5)


@pytest.fixture
def chat() -> Chat:
    return Chat()


@pytest.fixture
def line(chat: Chat) -> Any:
    scheduler = Scheduler(chat, max_batch=3, max_waiting=4)  # type: ignore[arg-type]
    yield scheduler
    chat.may.set()
    scheduler.close()


def begin(chat: Chat, line: Scheduler) -> Any:
    """Keep the model busy."""
    first = line.submit(request("first"))
    while not chat.batches:
        time.sleep(0.001)
    return first


def test_what_waits_goes_into_batches(chat: Chat, line: Scheduler) -> None:
    first = begin(chat, line)
    futures = [line.submit(request(str(number))) for number in range(4)]
    assert line.num_waiting == 4
    chat.may.set()
    assert [future.result(10).text for future in [first, *futures]] == ["first {}", "0 {}", "1 {}", "2 {}", "3 {}"]
    assert chat.batches == [["first"], ["0", "1", "2"], ["3"]]


def test_a_batch_waits_for_who_is_expected_but_not_for_long(chat: Chat, line: Scheduler) -> None:
    chat.may.set()
    with line.expect():
        first = line.submit(request("first"))
        time.sleep(0.15)  # longer than requests that come together are gathered
        assert chat.batches == []
        second = line.submit(request("second"))
    assert [first.result(10).text, second.result(10).text] == ["first {}", "second {}"]
    assert chat.batches == [["first", "second"]]
    with line.expect():
        assert line.submit(request("third")).result(10).text == "third {}"  # whoever is expected takes too long


def test_what_goes_alone_waits_for_nobody(chat: Chat, line: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_GATHER", "_GATHER_AGAIN", "_GATHER_EXPECTED"):
        monkeypatch.setattr(f"pallava.serving.scheduler.{name}", 60)
    chat.may.set()
    with line.expect():
        assert line.call(lambda: "called").result(10) == "called"
        assert line.submit(request("drawn"), seed=5).result(10).text == "drawn {'seed': 5}"
        first, call = line.submit(request("first")), line.call(lambda: "called")  # which no other may overtake
        assert [first.result(10).text, call.result(10)] == ["first {}", "called"]


def test_who_was_answered_together_is_answered_together_again(chat: Chat, line: Scheduler) -> None:
    first = begin(chat, line)
    futures = [line.submit(request("a")), line.submit(request("b"))]
    chat.may.set()
    assert [future.result(10).text for future in [first, *futures]] == ["first {}", "a {}", "b {}"]
    again = [line.submit(request("a"))]
    time.sleep(0.03)  # as one client needs for its next request
    again.append(line.submit(request("b")))
    assert [future.result(10).text for future in again] == ["a {}", "b {}"]
    assert chat.batches == [["first"], ["a", "b"], ["a", "b"]]


def test_drawn_words_and_calls_are_alone(chat: Chat, line: Scheduler) -> None:
    begin(chat, line)
    futures = [line.submit(request("a")), line.submit(request("b"), seed=5), line.submit(request("c"))]
    call = line.call(lambda: "called")
    chat.may.set()
    assert [future.result(10).text for future in futures] == ["a {}", "b {'seed': 5}", "c {}"]
    assert call.result(10) == "called"
    assert chat.batches == [["first"], ["a"], ["b"], ["c"]]


def test_the_line_has_an_end_and_who_leaves_makes_room(chat: Chat, line: Scheduler) -> None:
    begin(chat, line)
    futures = [line.submit(request(str(number))) for number in range(4)]
    with pytest.raises(UnavailableError, match="4 requests"):
        line.submit(request("5"))
    assert futures[1].cancel()
    last = line.submit(request("5"))
    chat.may.set()
    assert last.result(10).text == "5 {}"
    assert chat.batches == [["first"], ["0", "2", "3"], ["5"]]


def test_a_batch_that_fails_fails_alone(chat: Chat, line: Scheduler) -> None:
    begin(chat, line)
    futures = [line.submit(request(name)) for name in ("bad", "1", "2", "3")]
    chat.may.set()
    for future in futures[:3]:
        with pytest.raises(PallavaError, match="a bad one"):
            future.result(10)
    assert futures[3].result(10).text == "3 {}"


def test_a_batch_without_room_is_tried_one_by_one(chat: Chat, line: Scheduler) -> None:
    begin(chat, line)
    futures = [line.submit(request(name)) for name in ("1", "large", "bad")]
    chat.may.set()
    assert [future.result(10).text for future in futures[:2]] == ["1 {}", "large {}"]
    with pytest.raises(PallavaError, match="a bad one"):
        futures[2].result(10)
    assert chat.batches == [["first"], ["1", "large", "bad"], ["1"], ["large"], ["bad"]]


def test_a_call_without_room(line: Scheduler) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(UnavailableError, match="memory"):
        line.call(fail).result(10)


def test_a_closed_line_refuses_what_waits(chat: Chat) -> None:
    line = Scheduler(chat, max_batch=1, max_waiting=4)  # type: ignore[arg-type]
    first, second, third = begin(chat, line), line.submit(request("2")), line.submit(request("3"))
    third.cancel()
    closing = threading.Thread(target=line.close)
    closing.start()
    chat.may.set()
    closing.join(10)
    assert first.result(10).text == "first {}"
    with pytest.raises(UnavailableError, match="closing"):
        second.result(10)
    with pytest.raises(UnavailableError, match="closing"):
        line.submit(request("4"))


def test_several_threads_take_from_one_line(chat: Chat) -> None:
    line = Scheduler(chat, max_batch=2, max_waiting=50, num_threads=4)  # type: ignore[arg-type]
    chat.may.set()
    futures = [line.submit(request(str(number))) for number in range(40)]
    assert [future.result(10).text for future in futures] == [f"{number} {{}}" for number in range(40)]
    line.close()
