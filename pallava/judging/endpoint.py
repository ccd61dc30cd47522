"""Models behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, Ollama, OpenAI): the one client for all.

Many requests at a time, each tried several times by the `openai` package, which waits longer after each failure and as
long as a ``Retry-After`` says. Requests do not share their bad luck: each ends as a `Reply` or a `Failure`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from pallava.errors import PallavaError
from pallava.images import ImageError, ImageSource, open_image

_MAX_TOKENS = 256  # an answer of one word, and room for a model that explains itself first
_NUM_REFUSALS = 3  # so many at the start, and no answer: the request is wrong, not the item
_HARMLESS = "Is white a colour? Answer yes or no."
_MAX_REASON = 300  # characters
_REFUSALS = (400, 413, 422)
_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Attributes:
        text: The prompt.
        image: A picture that goes with it.
    """

    text: str
    image: ImageSource | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said; empty if it said nothing."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        reason: What went wrong.
        is_final: Asking again is of no use, since the request itself is at fault.
        is_refused: The server will not answer this very request: too long, an image it cannot read, a content rule.
    """

    reason: str
    is_final: bool = False
    is_refused: bool = False


Answer = Reply | Failure


class UnansweredError(PallavaError):
    """Some requests failed for a passing reason; what was answered has been given out before."""


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    The key is read from the environment: ``PALLAVA_API_KEY``, else ``OPENAI_API_KEY``, else "none", which local servers
    accept.

    Attributes:
        base_url: Such as ``http://localhost:8000/v1``.
        model: The model's name there.
        concurrency: Requests under way at a time.
        timeout: Seconds that one try may take.
        max_retries: Further tries after one that failed for a passing reason.
        image_side: Longer side in pixels to which larger images are scaled.
    """

    base_url: str
    model: str
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    image_side: int = 768
    _num_replies: int = field(default=0, init=False, repr=False)
    _num_refusals: int = field(default=0, init=False, repr=False)
    _num_failures_in_a_row: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise PallavaError(
                f"the endpoint '{self.base_url}' is no URL; expected one such as http://localhost:8000/v1"
            )
        if self.concurrency < 1 or self.image_side < 1 or self.timeout <= 0 or self.max_retries < 0:
            raise PallavaError("concurrency, image side and time limit of an endpoint must be positive")

    @cached_property
    def _client(self) -> Any:
        import openai  # half a second

        key = os.environ.get("PALLAVA_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        return openai.OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.max_retries)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Asks all requests and gives their answers in order.

        Raises:
            PallavaError: As `iter_answers`.
        """
        answers = dict(self.iter_answers(requests))
        return [answers[index] for index in range(len(requests))]

    def iter_answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Asks all requests and yields (index, answer) of each as soon as it is there.

        Raises:
            PallavaError: The server cannot be reached, stopped answering, has no such model, does not accept the key,
                or refuses every request. Answers that were under way by then are yielded first.
        """
        _ = self._client  # made once, before there are threads
        trouble: PallavaError | None = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            under_way: dict[Future[Answer], int] = {}
            waiting = iter(enumerate(requests))
            try:
                while True:
                    while not trouble and len(under_way) < self.concurrency and (upcoming := next(waiting, None)):
                        under_way[pool.submit(self._ask_one, upcoming[1])] = upcoming[0]
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        index = under_way.pop(future)
                        try:
                            answer = future.result()
                            trouble = trouble or self._trouble_after(answer, requests[index])
                        except PallavaError as error:
                            trouble = trouble or error
                        else:
                            yield index, answer
            finally:
                pool.shutdown(cancel_futures=True)
        if trouble:
            raise trouble

    def iter_settled(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """As `iter_answers`, but only what asking again would not change: replies, and final failures.

        What is refused is held back until the server has answered anything: one that refuses all is set up wrongly.

        Raises:
            UnansweredError: After all others were yielded, if requests failed for a passing reason.
            PallavaError: As `iter_answers`.
        """
        passing: list[Failure] = []
        refused: list[tuple[int, Failure]] = []
        for index, answer in self.iter_answers(requests):
            if isinstance(answer, Failure) and answer.is_refused:
                refused.append((index, answer))
            elif isinstance(answer, Failure) and not answer.is_final:
                passing.append(answer)
            else:
                yield index, answer
            if self._num_replies:
                yield from refused
                refused.clear()
        if refused and self._is_working(requests[refused[0][0]]):
            yield from refused
        else:
            passing += [answer for _, answer in refused]
        if passing:
            raise UnansweredError(
                f"{len(passing)} of {len(requests)} requests to {self} failed, the first because {passing[0].reason}. "
                "All other answers are stored: run the same command again to ask for these."
            )

    def _trouble_after(self, answer: Answer, request: Request) -> PallavaError | None:
        """Counts an answer; tells when there are too many failures to go on."""
        if isinstance(answer, Reply):
            self._num_replies, self._num_failures_in_a_row = self._num_replies + 1, 0
            return None
        if answer.is_final:
            self._num_refusals += answer.is_refused
            if self._num_replies or self._num_refusals < _NUM_REFUSALS or self._is_working(request):
                return None
            return PallavaError(f"{self} refuses every request: {answer.reason}")
        self._num_failures_in_a_row += 1
        if self._num_failures_in_a_row < max(8, 2 * self.concurrency):
            return None
        if self._is_working(request):  # a run that goes on may ask nothing but what failed before
            self._num_failures_in_a_row = 0
            return None
        return PallavaError(
            f"{self} stopped answering: the last {self._num_failures_in_a_row} requests failed, the last one because "
            f"{answer.reason}. Answers so far are not lost: start the server again, or ask less at a time."
        )

    def __str__(self) -> str:
        return f"the model '{self.model}' at {self.base_url}"

    def _is_working(self, request: Request) -> bool:
        """Whether the server answers a request of the same kind that nobody can object to."""
        image = None if request.image is None else Image.new("RGB", (64, 64), "white")
        answer = self._ask_one(Request(_HARMLESS, image))
        self._num_replies += isinstance(answer, Reply)
        return isinstance(answer, Reply)

    def _ask_one(self, request: Request) -> Answer:
        import openai

        try:
            messages = [{"role": "user", "content": self._content(request)}]
        except ImageError as error:
            return Failure(str(error), is_final=True)
        try:
            completion = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=_MAX_TOKENS
            )
            return Reply(completion.choices[0].message.content or "")
        except openai.NotFoundError as error:
            raise self._no_model(error) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise PallavaError(f"{self} does not accept the key ({error}); set PALLAVA_API_KEY") from None
        except openai.APITimeoutError:
            return Failure(f"no answer within {self.timeout:g} seconds, {self.max_retries + 1} times")
        except openai.APIConnectionError as error:
            return self._no_connection(error)
        except openai.APIStatusError as error:
            is_refused = error.status_code in _REFUSALS
            return Failure(f"the server said {error}"[:_MAX_REASON], is_final=is_refused, is_refused=is_refused)
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Failure(f"the answer is no chat completion ({type(error).__name__}: {error})"[:_MAX_REASON])

    def _no_connection(self, error: Exception) -> Failure:
        if self._num_replies or self._num_refusals:
            return Failure(f"the connection failed ({error.__cause__ or error})")
        raise PallavaError(
            f"cannot reach {self.base_url} ({error.__cause__ or error}); is the server running, and is the URL right? "
            "It usually ends in /v1."
        )

    def _no_model(self, error: Exception) -> PallavaError:
        try:
            names = ", ".join(model.id for model in self._client.with_options(max_retries=0).models.list())
            there = f"it has {names}" if names else "it has none"
        except Exception:  # a server without a list of its models, or no such server at all
            there = "it lists no models; a URL usually ends in /v1"
        return PallavaError(f"{self.base_url} has no model '{self.model}' ({error}): {there}")

    def _content(self, request: Request) -> str | list[dict[str, Any]]:
        if request.image is None:
            return request.text
        url = image_url(open_image(request.image), self.image_side)
        return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]


def image_url(image: Image.Image, side: int) -> str:
    """A picture as a data URL of a JPEG whose longer side is at most `side` pixels."""
    scale = side / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(length * scale)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
