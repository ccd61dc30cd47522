"""The server's routes: OpenAI's chat completions, what the connector read in an image, health, metrics, the page."""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from pallava import __version__
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.serving.bounds import RefusedError, error_body
from pallava.serving.chat_model import ChatModel
from pallava.serving.metrics import CONTENT_TYPE, Metrics, Timing
from pallava.serving.reading import read_image
from pallava.serving.record import NOTICE, describe_model
from pallava.serving.replies import Picture, Reply, UnavailableError
from pallava.serving.scheduler import Scheduler
from pallava.serving.schema import ChatCompletionRequest, ErrorResponse, ImageURL, ReadingRequest
from pallava.serving.urls import resolve_url

_PAGE = Path(__file__).with_name("page.html")
_OPENERS = 2  # threads that open images, each of which may take a GiB
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in ("4XX", 503)}
_FINISH = {"stop": "stop", "length": "length", "cancelled": "length"}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_new_tokens: int
    max_images: int
    max_pixels: int  # of an image
    max_bytes: int  # of an image that a URL names
    seconds: float  # from its arrival to the end of its answer
    hosts: frozenset[str] = frozenset()  # of which images may be fetched


@dataclass(eq=False)
class _Asked:
    """A request on its way."""

    future: "Future[Reply]"
    pieces: "asyncio.Queue[str | None]"  # of the answer; None once it is whole


class Api:
    """The routes of one server, of one model.

    Args:
        chat: The model.
        scheduler: What computes for it.
        name: Name of the model.
        limits: What one request may ask for.
        metrics: Counts.
    """

    def __init__(self, chat: ChatModel, scheduler: Scheduler, name: str, limits: Limits, metrics: Metrics) -> None:
        self._chat, self._scheduler, self.name, self._limits, self._metrics = chat, scheduler, name, limits, metrics
        self._openers = ThreadPoolExecutor(_OPENERS, "images")
        self._started = int(time.time())

    def app(self) -> FastAPI:
        """Return the application, without anything around it."""
        app = FastAPI(title="pallava", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
        route = partial(app.add_api_route, responses=_ERRORS)
        route("/", self.page, response_class=HTMLResponse, include_in_schema=False)
        route("/health", self.health)
        route("/metrics", self.metrics, response_class=Response)
        route("/v1/models", self.models)
        route("/v1/chat/completions", self.complete, methods=["POST"])
        route("/v1/reading", self.read, methods=["POST"])
        app.exception_handler(PallavaError)(_on_user_error)
        app.exception_handler(RefusedError)(_on_refusal)
        app.exception_handler(RequestValidationError)(_on_invalid)
        app.exception_handler(HTTPException)(_on_http_error)
        app.exception_handler(Exception)(_on_fault)
        return app

    async def page(self) -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    async def health(self) -> dict[str, str]:
        """Return that the server is there."""
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """Return counts, in the text form of Prometheus."""
        self._metrics.waiting.set(self._scheduler.num_waiting)
        return Response(self._metrics.to_text(), media_type=CONTENT_TYPE)

    async def models(self) -> dict[str, Any]:
        """Return the one model, with what a conversation's record should say of it."""
        about = {
            "facts": describe_model(self._chat.model),
            "max_new_tokens": self._limits.max_new_tokens,
            "max_images": self._limits.max_images,
            "reads_tiles": self._chat.model.config.connector_config.reads_tiles,
            "notice": NOTICE,
        }
        model = {"id": self.name, "object": "model", "created": self._started, "owned_by": "pallava", "pallava": about}
        return {"object": "list", "data": [model]}

    async def complete(self, body: ChatCompletionRequest, request: Request) -> Any:
        """Answer a conversation; the probability of the answer is beside it as `pallava`."""
        if body.model not in (None, self.name):
            message = f"the model '{body.model}' does not exist; this server has '{self.name}'"
            raise RefusedError(404, message, "model_not_found")
        gone = threading.Event()
        asked = await self._ask(body, gone)
        watch = asyncio.create_task(_wait_until_gone(request))
        watch.add_done_callback(lambda _: _give_up(asked, gone))
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, asked.future.cancel)  # while it waits

        def finish() -> None:
            timer.cancel()
            watch.cancel()  # which gives up what is not done

        if body.stream:
            pieces = self._stream(asked, bool(body.stream_options and body.stream_options.include_usage), finish)
            return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            reply = await _result(asked.future)
        finally:
            finish()
        answer = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": answer, "finish_reason": _FINISH[reply.finish_reason], "logprobs": None}
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": _usage(reply), "pallava": _confidence(reply)}

    async def read(self, body: ReadingRequest) -> dict[str, Any]:
        """Return what the connector read in an image: the attention to each token of its tiles."""
        url = await self._in_opener(partial(self._resolve, body.image))
        image = await self._in_opener(partial(open_image, url, max_pixels=self._limits.max_pixels))
        work = partial(read_image, self._chat.model, self._chat.processor, image)
        return (await _result(self._scheduler.call(work))).to_dict()

    async def _ask(self, body: ChatCompletionRequest, gone: threading.Event) -> _Asked:
        end = time.monotonic() + self._limits.seconds
        urls = body.image_urls()
        if len(urls) > self._limits.max_images:
            raise PallavaError(f"a conversation must have at most {self._limits.max_images} images, got {len(urls)}")
        pictures = [await self._in_opener(partial(self._see, url)) for url in urls]
        loop, pieces, timing = asyncio.get_running_loop(), asyncio.Queue[str | None](), Timing(self._metrics)

        def put(text: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        def note(text: str) -> None:
            timing.note_text()
            put(text)

        make = partial(
            self._chat.request,
            body.to_messages(),
            pictures,
            max_new_tokens=min(body.max_new_tokens or self._limits.max_new_tokens, self._limits.max_new_tokens),
            stop=body.stops,
            on_text=note,
            is_cancelled=lambda: gone.is_set() or time.monotonic() > end,
        )
        future = self._scheduler.submit(await asyncio.to_thread(make), **body.options())
        timing.begin()
        future.add_done_callback(lambda done: timing.end(_reply_of(done)))
        future.add_done_callback(lambda _: put(None))
        return _Asked(future, pieces)

    def _resolve(self, url: ImageURL) -> str | bytes:
        return resolve_url(url.url, self._limits.hosts, self._limits.max_bytes)

    def _see(self, url: ImageURL) -> Picture:
        return self._chat.see(self._resolve(url), max_pixels=self._limits.max_pixels)

    async def _in_opener(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._openers, work)

    def _head(self, kind: str) -> dict[str, Any]:
        number = secrets.token_hex(12)
        return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": self.name}

    async def _stream(self, asked: _Asked, has_usage: bool, finish: Callable[[], None]) -> AsyncIterator[str]:
        head = self._head("chat.completion.chunk")

        def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            return _event({**head, "choices": [choice], **more})

        try:
            yield event({"role": "assistant", "content": ""})
            while (piece := await asked.pieces.get()) is not None:
                yield event({"content": piece})
            try:
                reply = await _result(asked.future)
            except PallavaError as error:
                yield _event(error_body(503, str(error)))
            else:
                yield event({}, _FINISH[reply.finish_reason], pallava=_confidence(reply))
                if has_usage:
                    yield _event({**head, "choices": [], "usage": _usage(reply)})
            yield "data: [DONE]\n\n"
        finally:
            finish()


def _confidence(reply: Reply) -> dict[str, Any]:
    """Return how probable the answer was, and what that means."""
    return {
        "probability": reply.probability,
        "meaning": reply.meaning,
        "choices": reply.choices or None,
        "is_cut": reply.finish_reason != "stop",
        "notice": NOTICE,
    }


def _usage(reply: Reply) -> dict[str, Any]:
    prompt, new = reply.num_prompt_tokens, reply.num_new_tokens
    details = {"cached_tokens": reply.num_cached_tokens}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": details,
    }


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _result(future: "Future[Any]") -> Any:
    """Wait for a result of the scheduler's."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if not future.cancelled():
            raise  # not the request was cancelled, but what waits for it
        raise UnavailableError("the request has waited too long; try again in a while") from None


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reply_of(future: "Future[Reply]") -> Reply | None:
    return None if future.cancelled() or future.exception() else future.result()


def _give_up(asked: _Asked, gone: threading.Event) -> None:
    gone.set()
    asked.future.cancel()


async def _on_refusal(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body, error.status)


async def _on_user_error(request: Request, error: Any) -> JSONResponse:
    status = 503 if isinstance(error, UnavailableError) else 400
    return JSONResponse(error_body(status, str(error)), status)


async def _on_invalid(request: Request, error: Any) -> JSONResponse:
    first: dict[str, Any] = error.errors()[0]
    place = ".".join(part for part in map(str, first["loc"][1:]) if part.isidentifier() or part.isdecimal())
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        message = f"the body must be JSON: {first['ctx']['error']}"
    return JSONResponse(error_body(400, f"{place}: {message}" if place else message, param=place or None), 400)


async def _on_http_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, "the server failed; its log has the reason"), 500)
