"""What a request must keep to before the API sees it: time and the sum of all bodies; the rest is in `test_api.py`."""

import asyncio
from typing import Any

import pytest

from pallava.serving.bounds import Bounds

SCOPE = {"type": "http", "path": "/v1", "method": "POST", "headers": [(b"content-type", b"application/json")]}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def bounds(app: Any = echo, **how: Any) -> Bounds:
    return Bounds(app, None, None, **{"max_bytes": 10, "max_in_flight": 15, "max_requests": 2, **how})


class Client:
    """Sends pieces, each after some seconds, and notes the answer."""

    def __init__(self, *pieces: tuple[float, bytes]) -> None:
        self.pieces, self.sent = list(pieces), list[Any]()

    async def receive(self) -> Any:
        if not self.pieces:
            return await asyncio.Event().wait()
        seconds, content = self.pieces.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": content, "more_body": bool(self.pieces)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, app: Bounds, **scope: Any) -> int:
        await app({**SCOPE, **scope}, self.receive, self.send)
        return self.sent[0]["status"]


def test_pieces_are_joined() -> None:
    client = Client((0, b"abc"), (0.01, b"def"))
    assert asyncio.run(client.ask(bounds())) == 200
    assert client.sent[1]["body"] == b"abcdef"


def test_a_slow_body_is_not_waited_for() -> None:
    assert asyncio.run(Client((0, b"abc"), (5, b"def")).ask(bounds(body_seconds=0.05))) == 408


def test_all_bodies_together_have_a_bound() -> None:
    """And a request that is refused, or has ended, leaves room for the next."""

    async def run() -> list[int]:
        app = bounds()
        first = asyncio.create_task(Client((0, b"12345678"), (0.2, b"")).ask(app))
        await asyncio.sleep(0.05)
        second = await Client((0, b"12345678")).ask(app)
        third = await Client((0, b"123456")).ask(app)
        return [await first, second, third, await Client((0, b"0123456789")).ask(app), app._in_flight]

    assert asyncio.run(run()) == [200, 503, 200, 200, 0]


def test_a_client_that_takes_nothing_is_left() -> None:
    class Stuck(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

    client = Stuck((0, b"abc"))
    app = bounds(send_seconds=0.05)
    assert asyncio.run(client.ask(app)) == 200
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert app._in_flight == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [("[::1]", 200), ("[::1]:8000", 200), ("LOCALHOST:1", 200), ("localhost", 200)]
    + [
        (host, 403) for host in ("[::1]evil", "evil]", "evil.example", "[::2]", "evil.example:[::1]", "", "localhost:x")
    ],
)
def test_hosts(host: str, status: int) -> None:
    app = Bounds(echo, None, ("localhost", "[::1]"), 10, 10, 1)
    headers = [(b"content-type", b"Application/JSON; charset=utf-8"), (b"host", host.encode())]
    assert asyncio.run(Client((0, b"abc")).ask(app, headers=headers)) == status


def test_statuses_are_counted() -> None:
    found: list[Any] = []
    app = bounds(on_status=lambda path, status: found.append((path, status)))
    asyncio.run(Client((0, b"abc")).ask(app))
    asyncio.run(Client((0, b"0123456789a")).ask(app))
    assert found == [("/v1", 200), ("/v1", 413)]


def test_all_requests_together_have_a_bound() -> None:
    """Of which those that need no key are not part: nobody is locked out by them, nor by their bodies."""

    async def run() -> list[int]:
        app = bounds()
        slow = [asyncio.create_task(Client((0, b"a"), (0.2, b"")).ask(app)) for _ in range(2)]
        await asyncio.sleep(0.05)
        others = [await Client((0, b"")).ask(app, path=path, method="GET") for path in ("/v1", "/", "/health")]
        bodies = [await Client((0, b"a")).ask(app, path=path) for path in ("/", "/health")]
        return [*others, *bodies, *[await each for each in slow], await Client((0, b"")).ask(app)]

    assert asyncio.run(run()) == [503, 200, 200, 413, 413, 200, 200, 200]
