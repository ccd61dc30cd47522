"""What every request must keep to before it reaches the API: size, time, host, key, kind of content."""

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pallava.errors import cap_message

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN_PATHS = ("/", "/health")  # that show nothing of the model
_HOST = re.compile(r"(\[[^]]*\]|[^:]*)(?::\d*)?")  # and its port
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form, with a message that can be sent whatever it quotes."""
    text = cap_message(message).encode(errors="replace").decode()
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


class RefusedError(Exception):
    """A request that is not served: its status, and a message for the client."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(status, message, code=code)


class Connection(H11Protocol):
    """A connection that ends if the head of a request does not come, or an answer is not taken, in time.

    Bodies and pieces of answers have their times in `Bounds`.
    """

    seconds = 20.0  # of waiting, and up to twice as many

    def connection_made(self, transport: Any) -> None:
        """Begin, as uvicorn does."""
        super().connection_made(transport)
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, as uvicorn does."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _check(self, before: object = None) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        now = (self.cycle, is_waiting)
        if is_waiting and now == before:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.seconds, self._check, now)


@dataclass
class Bounds:
    """ASGI application around another one, which gets requests with their whole bodies only.

    Bodies are read before the application runs, at most `max_bytes` of each, `max_in_flight` bytes of all together.
    What is open to everybody takes no body, and is open however many requests there are.
    """

    app: App
    key: str | None  # demanded as ``Authorization: Bearer KEY``, but for the page itself and /health
    hosts: Collection[str] | None  # names in the Host header; None for any. Keeps other sites' pages from reaching it
    max_bytes: int
    max_in_flight: int
    max_requests: int
    body_seconds: float = 30.0  # for a whole body
    send_seconds: float = 60.0  # for a piece of an answer, after which a client has stopped reading
    headers: Mapping[str, str] = field(default_factory=dict)  # of every answer
    on_status: Callable[[str, int], None] = lambda path, status: None  # called with path and status of every answer
    _in_flight: int = 0
    _num_requests: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, is_read, is_counted = bytearray(), 0, False, False

        async def send_in_time(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.on_status(scope["path"], message["status"])
                own = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await asyncio.wait_for(send(message), self.send_seconds)

        async def receive_whole() -> dict[str, Any]:
            if not parts:
                return await receive()
            return {"type": "http.request", "body": parts.pop(), "more_body": False}

        try:
            self._check(scope)
            is_counted = scope["path"] not in _OPEN_PATHS
            self._num_requests += is_counted
            if is_counted and self._num_requests > self.max_requests:
                raise RefusedError(503, "too many requests at once; try again in a while")
            if not await asyncio.wait_for(self._read(receive, body, self._max_bytes(scope)), self.body_seconds):
                return
            parts, size, is_read = [bytes(body)], len(body), True
            body.clear()
            await self.app(scope, receive_whole, send_in_time)
        except RefusedError as error:
            await _refuse(send_in_time, error)
        except asyncio.TimeoutError:
            if not is_read:  # else the client has stopped reading, and its connection ends here
                message = f"a request must be sent within {self.body_seconds:g} seconds"
                await _refuse(send_in_time, RefusedError(408, message))
        finally:
            self._in_flight -= size + len(body)
            self._num_requests -= is_counted

    async def _read(self, receive: Receive, body: bytearray, max_bytes: int) -> bool:
        """Read a whole body; return whether the client is still there."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            body += chunk
            self._in_flight += len(chunk)
            if len(body) > max_bytes:
                raise RefusedError(413, f"a request must have at most {max_bytes} bytes")
            if self._in_flight > self.max_in_flight:
                raise RefusedError(503, "too much is being sent at once; try again in a while")
            if not message.get("more_body"):
                return True

    def _check(self, scope: Scope) -> None:
        """Refuse a request by its head alone."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        host = match[1] if (match := _HOST.fullmatch(host)) else host
        if self.hosts is not None and host.lower() not in self.hosts:
            raise RefusedError(403, f"the server is for {', '.join(sorted(self.hosts))} only, got the host '{host}'")
        if self.key and scope["path"] not in _OPEN_PATHS:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode("latin-1"), b"Bearer " + self.key.encode()):
                raise RefusedError(401, "the request must have the server's key as Authorization: Bearer KEY")
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise RefusedError(415, "a request must have the content type application/json")
        length = headers.get("content-length", "0")
        max_bytes = self._max_bytes(scope)
        if not length.isdecimal() or int(length[:20]) > max_bytes:
            raise RefusedError(413, f"a request must have at most {max_bytes} bytes")

    def _max_bytes(self, scope: Scope) -> int:
        return 0 if scope["path"] in _OPEN_PATHS else self.max_bytes


async def _refuse(send: Send, error: RefusedError) -> None:
    content = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"connection", b"close")]  # what else the client sends is not read
    headers += [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
