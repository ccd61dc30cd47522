"""The server's routes: OpenAI's chat completions, what the connector read in an image, health, metrics, the page."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.exceptions import HTTPException

from pallava import __version__
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.serving.bounds import RefusedError, error_body
from pallava.serving.chat_model import ChatModel
from pallava.serving.metrics import CONTENT_TYPE, Metrics, Timing
from pallava.serving.options import ServeOptions
from pallava.serving.reading import read_image
from pallava.serving.record import NOTICE, describe_model
from pallava.serving.replies import Picture, Reply, UnavailableError
from pallava.serving.scheduler import Scheduler
from pallava.serving.schema import ChatCompletionRequest, ErrorResponse, ImageURL, ReadingRequest, StreamOptions
from pallava.serving.urls import resolve_url
from pallava.serving.visit import Visit

_LOGGER = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("page.html")
_OPENERS = 2  # threads that open images, each of which may take a GiB
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in ("4XX", 503)}
_FAULT = "the server failed; its log has the reason"
_FORMS = {
    "missing": "must be given",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "too_short": "must not be empty",
}
_FINISH = {"stop": "stop", "length": "length", "cancelled": "length"}


class Api:
    """The routes of one server, of one model.

    Args:
        chat: The model.
        scheduler: What computes for it.
        name: Name of the model.
        options: What one request may ask for.
        metrics: Counts.
    """

    def __init__(
        self, chat: ChatModel, scheduler: Scheduler, name: str, options: ServeOptions, metrics: Metrics
    ) -> None:
        self._chat, self._scheduler, self.name, self._options, self._metrics = chat, scheduler, name, options, metrics
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
        route("/v1/models/{name:path}", self.describe)
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
        """Return a list of the one model."""
        return {"object": "list", "data": [await self.describe(self.name)]}

    async def describe(self, name: str) -> dict[str, Any]:
        """Return the model, with what a conversation's record should say of it."""
        self._check_name(name)
        about = {
            "facts": describe_model(self._chat.model),
            "max_new_tokens": self._options.max_new_tokens,
            "max_images": self._options.max_images,
            "reads_tiles": self._chat.model.config.connector_config.reads_tiles,
            "notice": NOTICE,
        }
        return {"id": self.name, "object": "model", "created": self._started, "owned_by": "pallava", "pallava": about}

    async def complete(self, body: ChatCompletionRequest, request: Request) -> Any:
        """Answer a conversation; the probability of the answer is beside it as `pallava`."""
        self._check_name(self.name if body.model is None else body.model)
        with ExitStack() as stack:
            visit = stack.enter_context(Visit(request, self._options.timeout))
            await self._submit(body, visit)
            if body.stream:
                pieces = self._stream(visit, body.stream_options or StreamOptions(include_usage=False), stack.pop_all())
                return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            reply = await visit.result()
        answer = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": answer, "finish_reason": _FINISH[reply.finish_reason], "logprobs": None}
        more = {"usage": _usage(reply), "pallava": _confidence(reply)}
        return {**self._head("chat.completion"), "choices": [choice], **more}

    async def read(self, body: ReadingRequest, request: Request) -> dict[str, Any]:
        """Return what the connector read in an image: the attention to each token of its tiles."""
        with Visit(request, self._options.timeout) as visit:
            image = await visit.wait(partial(self._openers.submit, self._open, body.image))
            work = partial(read_image, self._chat.model, self._chat.processor, image)
            return (await visit.wait(partial(self._scheduler.call, work))).to_dict()

    def _check_name(self, name: str) -> None:
        if name != self.name:
            message = f"the model '{name}' does not exist; this server has '{self.name}'"
            raise RefusedError(404, message, "model_not_found")

    async def _submit(self, body: ChatCompletionRequest, visit: Visit) -> None:
        timing, urls = Timing(self._metrics), body.image_urls()
        if len(urls) > self._options.max_images:
            raise PallavaError(f"a conversation must have at most {self._options.max_images} images, got {len(urls)}")
        loop = asyncio.get_running_loop()

        def put(text: str | None) -> None:
            loop.call_soon_threadsafe(visit.pieces.put_nowait, text)

        def note(text: str) -> None:
            timing.note_text()
            put(text)

        with self._scheduler.expect():
            sources = enumerate(urls, start=1)
            pictures = [await visit.wait(partial(self._openers.submit, self._see, *source)) for source in sources]
            make = partial(
                self._chat.request,
                body.to_messages(),
                pictures,
                max_new_tokens=min(body.max_new_tokens or self._options.max_new_tokens, self._options.max_new_tokens),
                stop=body.stops,
                on_text=note,
                is_cancelled=visit.is_over,
            )
            future = self._scheduler.submit(await asyncio.to_thread(make), **body.options())
        timing.begin()
        future.add_done_callback(lambda done: timing.end(_reply_of(done)))
        future.add_done_callback(lambda _: put(None))
        visit.follow(future)  # at once, since a stream waits for its pieces first

    def _resolve(self, url: ImageURL) -> str | bytes:
        return resolve_url(url.url, [host.lower() for host in self._options.allow_url], self._options.max_mb << 20)

    def _open(self, url: ImageURL) -> Image.Image:
        return open_image(self._resolve(url), max_pixels=self._options.max_pixels)

    def _see(self, number: int, url: ImageURL) -> Picture:
        try:
            return self._chat.see(self._resolve(url), max_pixels=self._options.max_pixels)
        except PallavaError as error:
            raise PallavaError(f"image {number}: {error}") from None

    def _head(self, kind: str) -> dict[str, Any]:
        number = secrets.token_hex(12)
        return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": self.name}

    async def _stream(self, visit: Visit, options: StreamOptions, stack: ExitStack) -> AsyncIterator[str]:
        head = self._head("chat.completion.chunk")

        def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            return _event({**head, "choices": [choice], **more})

        with stack:
            yield event({"role": "assistant", "content": ""})
            while (piece := await visit.pieces.get()) is not None:
                yield event({"content": piece})
            try:
                reply = await visit.result()
                yield event({}, _FINISH[reply.finish_reason], pallava=_confidence(reply))
                if options.include_usage:
                    yield _event({**head, "choices": [], "usage": _usage(reply)})
            except PallavaError as error:
                yield _event(error_body(_status_of(error), str(error)))
            except Exception:
                _LOGGER.exception("a stream failed")
                yield _event(error_body(500, _FAULT))
            yield "data: [DONE]\n\n"


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
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


def _reply_of(future: "Future[Reply]") -> Reply | None:
    return None if future.cancelled() or future.exception() else future.result()


def _status_of(error: PallavaError) -> int:
    return 503 if isinstance(error, UnavailableError) else 400


async def _on_refusal(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body, error.status)


async def _on_user_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error_body(_status_of(error), str(error)), _status_of(error))


async def _on_invalid(request: Request, error: Any) -> JSONResponse:
    # Of the forms that a field may have, the deepest error is in the one that was meant; if there is none, not in text.
    found = max(error.errors(), key=lambda each: (len(each["loc"]), each["type"] != "string_type"))
    if found["type"] == "json_invalid":
        return JSONResponse(error_body(400, f"the body must be JSON: {found['ctx']['error']}"), 400)
    place = ".".join(part for part in map(str, found["loc"][1:]) if part.isidentifier() or part.isdecimal())
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] in _FORMS:
        message = f"{place or 'the body'} {_FORMS[found['type']]}"
    elif place:
        message = f"{place}: {message}"
    return JSONResponse(error_body(400, message, param=place or None), 400)


async def _on_http_error(request: Request, error: Any) -> JSONResponse:
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {request.url.path}; /openapi.json lists what there is"
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, _FAULT), 500)
