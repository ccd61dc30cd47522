"""A stand-in for vLLM: it takes the embeddings of a prompt, and answers by a language model of its own."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class StubEngine(ThreadingHTTPServer):
    """Notes each prompt's embeddings (L', H); `answer` makes the ids of an answer from them.

    It can refuse (`status`), wait before it answers (`delay`, in seconds), and end without a reason (`has_end`).
    """

    daemon_threads = True

    def __init__(self, llm: Any, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.llm, self.tokenizer = llm, tokenizer
        self.prompts: list[torch.Tensor] = []
        self.requests: list[dict[str, Any]] = []
        self.models, self.status, self.num_left = ["llm"], 200, 0
        self.delay, self.has_end = 0.0, True
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, request: dict[str, Any]) -> list[int]:
        content = io.BytesIO(base64.b64decode(request["prompt_embeds"]))
        embeddings = torch.load(content, weights_only=True)
        with self.lock, torch.inference_mode():
            self.prompts.append(embeddings)
            self.requests.append(request)
            ids = self.llm.generate(
                inputs_embeds=embeddings[None],
                attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
                max_new_tokens=request["max_tokens"],
                eos_token_id=request["stop_token_ids"],
                do_sample=False,
            )
        return ids[0].tolist()


class _Handler(BaseHTTPRequestHandler):
    server: StubEngine

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status != 200:
            self._send({"error": {"message": "out of blocks"}}, self.server.status)
            return
        time.sleep(self.server.delay)
        ids, end = self.server.answer(request), request["stop_token_ids"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for place, token in enumerate(ids):
            text = self.server.tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
            before = self.server.tokenizer.decode(ids[:place], skip_special_tokens=True)
            reason = "stop" if token in end else "length" if place + 1 == len(ids) else None
            choice = {
                "index": 0,
                "text": text[len(before) :],
                "finish_reason": reason if self.server.has_end else None,
                "logprobs": {"token_logprobs": [-0.5]},
            }
            try:
                self.wfile.write(f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n".encode())
                self.wfile.flush()
            except OSError:
                self.server.num_left += 1
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def engine(llm: Any, tokenizer: Any) -> Iterator[StubEngine]:
    """An engine that runs."""
    with StubEngine(llm, tokenizer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
