"""A server that speaks as much of the OpenAI protocol as `pallava.judging.endpoint` does, and misbehaves by script."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Act:
    """What the server does with one request.

    Attributes:
        text: The model's reply.
        status: 200 sends a completion with the text; any other an error.
        headers: Further headers.
        delay: Seconds before it answers.
        body: Sent instead of a completion.
        hang_up: The connection is cut without an answer.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    body: str | None = None
    hang_up: bool = False


Script = Callable[[str, int], Act]
"""(text of the prompt, how often it came before) -> act."""


class StubEndpoint(ThreadingHTTPServer):
    """Answers by a script, and notes what came when.

    Attributes:
        prompts: How often each text came.
        answered: How often each text was answered with a completion.
        requests: The JSON of each request, in order.
        times: When each text came, in seconds.
        num_at_once: The most requests under way at a time.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, script: Script, models: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.models = script, models
        self.prompts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: dict[str, list[float]] = {}
        self.num_at_once = self._under_way = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_act(self, request: dict[str, Any], key: str | None) -> tuple[str, Act]:
        content = request["messages"][-1]["content"]
        text = content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")
        with self._lock:
            before = self.prompts[text]
            self.prompts[text] += 1
            self.requests.append(request)
            self.keys.add(key)
            self.times.setdefault(text, []).append(time.monotonic())
            self._under_way += 1
            self.num_at_once = max(self.num_at_once, self._under_way)
        return text, self.script(text, before)

    def finish(self, text: str, act: Act) -> None:
        with self._lock:
            self._under_way -= 1
            self.answered[text] += act.status == 200 and act.body is None and not act.hang_up

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: StubEndpoint
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in self.server.models]
        self._send(200, json.dumps({"object": "list", "data": models}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["model"] not in self.server.models:
            return self._send(404, json.dumps({"error": {"message": f"The model {request['model']} does not exist."}}))
        text, act = self.server.next_act(request, self.headers.get("Authorization"))
        time.sleep(act.delay)
        self.server.finish(text, act)
        if act.hang_up:
            self.close_connection = True
            return self.connection.close()
        body = act.body if act.body is not None else json.dumps(_completion(request["model"], act))
        return self._send(act.status, body, act.headers)

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _completion(model: str, act: Act) -> dict[str, Any]:
    if act.status != 200:
        return {"error": {"message": act.text or "by script", "type": "stub"}}
    message = {"role": "assistant", "content": act.text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}


@contextmanager
def stub_endpoint(script: Script, models: tuple[str, ...] = ("judge",)) -> Iterator[StubEndpoint]:
    """Runs a stub in threads for the length of the block."""
    server = StubEndpoint(script, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
