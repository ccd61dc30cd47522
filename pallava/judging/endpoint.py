"""A client for models behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, Ollama, OpenAI).

Many requests at a time, each tried several times by the `openai` package, which waits longer after each failure, and as
long as ``Retry-After`` says. Each request ends on its own, with an `Answer`.
"""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from PIL import Image

from pallava.errors import PallavaError
from pallava.images import ImageError, ImageSource, open_image
from pallava.io.hosts import is_here

MAX_REPLY = 200  # characters that are stored
_MAX_TOKENS = 256  # an answer of one word, and room for a model that explains itself first
_NUM_REFUSALS = 3  # this many without a reply: the server is set up wrongly, not the request
_MIN_FAILURES = 8  # in a row, or twice the concurrency: the server is gone
_HARMLESS = "Is white a colour? Answer yes or no."
_MAX_REASON = 300  # characters
_REFUSALS = (400, 413, 422)
_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and the image that goes with it, if any."""

    text: str
    image: ImageSource | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's text, which may be empty, or the reason of a failure.

    A failure is "passing" if asking again may help, "final" if the request itself is at fault, or "refused" if the
    server will not answer this very request: too long, an unreadable image, a content rule.
    """

    text: str
    failure: Literal["", "passing", "final", "refused"] = ""


class UnansweredError(PallavaError):
    """Some requests failed for a passing reason; all answers were yielded before."""


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    The key is read from the environment: ``PALLAVA_ENDPOINT_KEY``, else ``OPENAI_API_KEY``, else "none", which local
    servers accept.
    """

    base_url: str  # such as http://localhost:8000/v1
    model: str
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # of one try, in seconds
    max_retries: int = 5  # after a try that failed for a passing reason
    image_side: int = 768  # pixels of the longer side to which larger images are scaled
    _num_replies: int = field(default=0, init=False, repr=False)
    _num_refusals: int = field(default=0, init=False, repr=False)
    _num_failures_in_a_row: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise PallavaError(f"'{self.base_url}' is not a URL; expected one such as http://localhost:8000/v1")
        if self.concurrency < 1 or self.image_side < 1 or self.timeout <= 0 or self.max_retries < 0:
            raise PallavaError(f"the concurrency must be at least 1 and all limits positive, got {self!r}")

    @cached_property
    def _client(self) -> Any:
        import openai  # half a second

        key = os.environ.get("PALLAVA_ENDPOINT_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        may_leave = not is_here(self.base_url)  # else neither by a proxy that the environment names, nor redirected
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=key,
            timeout=self.timeout,
            max_retries=self.max_retries,
            http_client=openai.DefaultHttpxClient(trust_env=may_leave, follow_redirects=may_leave),
        )

    def _iter_answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Send all requests and yield (index, answer) of each as it arrives; on trouble, end with those under way."""
        _ = self._client  # made once, before any thread
        trouble: PallavaError | None = None
        under_way: dict[Future[Answer], int] = {}
        waiting = iter(enumerate(requests))
        with ThreadPoolExecutor(self.concurrency) as pool:
            while True:
                for index, request in islice(waiting, 0 if trouble else self.concurrency - len(under_way)):
                    under_way[pool.submit(self._ask_one, request)] = index
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
        if trouble:
            raise trouble

    def iter_settled(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Send all requests and yield (index, answer) of each that asking again would not change, as it arrives.

        Refusals are held back until the server has answered anything: one that refuses all is set up wrongly. Answers
        that are on their way when the server fails are yielded before the error. The error is an `UnansweredError` if
        only some requests failed, for a passing reason.
        """
        passing: list[str] = []
        refused: list[tuple[int, Answer]] = []
        for index, answer in self._iter_answers(requests):
            if answer.failure == "refused":
                refused.append((index, answer))
            elif answer.failure == "passing":
                passing.append(answer.text)
            else:
                yield index, answer
            if self._num_replies:
                yield from refused
                refused.clear()
        if refused and self._is_working(requests[refused[0][0]]):
            yield from refused
        else:
            passing += [answer.text for _, answer in refused]
        if passing:
            raise UnansweredError(
                f"{len(passing)} of {len(requests)} requests to {self} failed, the first because {passing[0]}; "
                "all other answers are stored: run the same command again to ask for these"
            )

    def _trouble_after(self, answer: Answer, request: Request) -> PallavaError | None:
        """Count an answer; return an error after too many failures to continue."""
        if not answer.failure:
            self._num_replies, self._num_failures_in_a_row = self._num_replies + 1, 0
            return None
        if answer.failure != "passing":
            self._num_refusals += answer.failure == "refused"
            if self._num_replies or self._num_refusals < _NUM_REFUSALS or self._is_working(request):
                return None
            return PallavaError(f"{self} refuses every request: {answer.text}")
        self._num_failures_in_a_row += 1
        # A resumed run may ask nothing but what failed before.
        if self._num_failures_in_a_row < max(_MIN_FAILURES, 2 * self.concurrency) or self._is_working(request):
            return None
        return PallavaError(
            f"{self} stopped answering: the last {self._num_failures_in_a_row} requests failed, the last one because "
            f"{answer.text}; answers so far are kept: start the server again, or lower the concurrency"
        )

    def __str__(self) -> str:
        return f"the model '{self.model}' at {self.base_url}"

    def _is_working(self, request: Request) -> bool:
        """Return whether the server answers a harmless request of the same kind."""
        image = None if request.image is None else Image.new("RGB", (64, 64), "white")
        is_reply = not self._ask_one(Request(_HARMLESS, image)).failure
        if is_reply:
            self._num_replies, self._num_failures_in_a_row = self._num_replies + 1, 0
        return is_reply

    def _ask_one(self, request: Request) -> Answer:
        import openai

        try:
            messages = [{"role": "user", "content": self._content(request)}]
            completion = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=_MAX_TOKENS
            )
            return Answer(completion.choices[0].message.content or "")
        except ImageError as error:
            return Answer(str(error), "final")
        except openai.NotFoundError as error:
            raise PallavaError(f"{self} is not available ({error}); {self._models()}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise PallavaError(f"{self} does not accept the key ({error}); set PALLAVA_ENDPOINT_KEY") from None
        except openai.APITimeoutError:
            return Answer(f"no answer within {self.timeout:g} seconds, {self.max_retries + 1} times", "passing")
        except openai.APIConnectionError as error:
            if self._num_replies or self._num_refusals:
                return Answer(f"the connection failed ({error.__cause__ or error})", "passing")
            raise PallavaError(
                f"cannot reach {self.base_url} ({error.__cause__ or error}); is the server running, and is the URL "
                "right? It usually ends in /v1"
            ) from None
        except openai.APIStatusError as error:
            reason, is_refused = f"the server said {error}"[:_MAX_REASON], error.status_code in _REFUSALS
            return Answer(reason, "refused" if is_refused else "passing")
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            reason = f"the answer is not a chat completion ({type(error).__name__}: {error})"
            return Answer(reason[:_MAX_REASON], "passing")

    def _models(self) -> str:
        try:
            names = [model.id for model in self._client.with_options(max_retries=0).models.list()]
            return f"its models are {', '.join(names) or 'none'}"
        except Exception:  # a server that lists no models, or another kind of server
            return "it does not list its models; a URL usually ends in /v1"

    def _content(self, request: Request) -> str | list[dict[str, Any]]:
        if request.image is None:
            return request.text
        image = open_image(request.image)
        if (scale := self.image_side / max(image.size)) < 1:
            width, height = (max(1, round(length * scale)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]
