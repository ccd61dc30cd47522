"""A request, and the reply to it while it is being written: text, probabilities, why it ended."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from pallava.errors import PallavaError
from pallava.model import PALLaVAProcessor

_UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class UnavailableError(PallavaError):
    """An answer cannot be had now: too many wait, memory is short, the server closes, an engine or the model fails."""


class TogetherError(UnavailableError):
    """Requests have no room in memory together, and have not been answered yet; each alone may have."""


@dataclass(eq=False)
class Picture:
    """An image as the model takes it: its tiles, and then its visual tokens in their place."""

    key: str  # hash of its pixels
    tiles: Any  # (1+N, 3, P, P), its overview first; None once it is encoded
    tokens: Any = None  # (T_i, H)


@dataclass(eq=False)
class ChatRequest:
    """A conversation that ends with a question; `ChatModel.request` makes one."""

    question: str
    ids: list[int]  # of the prompt, with -200 for each image
    pictures: Sequence[Picture]  # in reading order
    max_new_tokens: int
    stop: Sequence[str] = ()  # texts that end the reply, and are not part of it
    on_text: Callable[[str], Any] = lambda text: None  # called with each new piece of the reply
    is_cancelled: Callable[[], bool] = lambda: False  # asked at each token


@dataclass
class Reply:
    """An answer."""

    text: str = ""
    ids: list[int] = field(default_factory=list)  # with the end token
    log_probabilities: list[float] = field(default_factory=list)  # of each of them
    finish_reason: Literal["", "stop", "length", "cancelled"] = ""
    num_new_tokens: int = 0
    num_prompt_tokens: int = 0  # visual tokens included
    num_cached_tokens: int = 0  # of those, how many had been computed for an earlier turn
    choices: dict[str, float] = field(default_factory=dict)  # probability of each, if the question allows only these

    @property
    def probability(self) -> float | None:
        """Return that of the answer among `choices`, or else the (geometric) mean of its tokens'; None if unknown."""
        if self.choices:
            return self.choices[self.text]
        if not self.log_probabilities:
            return None
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities))

    @property
    def meaning(self) -> str:
        """Return in words what the probability is."""
        if not self.choices:
            return "mean probability of the answer's tokens" if self.log_probabilities else "unknown probability"
        *others, last = self.choices
        return f"probability of the answer among {', '.join(others)} and {last}"

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values that JSON can hold."""
        return {
            "answer": self.text,
            "probability": self.probability,
            "meaning": self.meaning,
            "choices": self.choices or None,
            "finish_reason": self.finish_reason,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_new_tokens": self.num_new_tokens,
        }


class Writer(BaseStreamer):
    """Writes the replies to a batch from the tokens of `generate`, which takes its methods as it goes.

    Args:
        requests: One for each row.
        processor: The model's.
        end_ids: Ids that end a reply.
    """

    def __init__(self, requests: Sequence[ChatRequest], processor: PALLaVAProcessor, end_ids: Sequence[int]) -> None:
        self.replies = [Reply() for _ in requests]
        self._requests, self._processor, self._end_ids = requests, processor, set(end_ids)
        self._log_probabilities = torch.empty(0)

    def note_scores(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the probabilities (B, V) of the next tokens, as a logits processor.

        Raises:
            UnavailableError: They are not numbers.
        """
        self._log_probabilities = scores.float().log_softmax(-1).cpu()
        if self._log_probabilities.isnan().any():
            raise UnavailableError("the model's logits are not finite; its weights are damaged or overflow")
        return scores

    def put(self, tokens: Tensor) -> None:
        """Add the next token (B,) of each row; `generate` first passes on the ids of the prompt, an empty tensor."""
        if not tokens.numel():
            return
        for row, token in enumerate(tokens.tolist()):
            if not self.replies[row].finish_reason:
                self._add(self._requests[row], self.replies[row], token, float(self._log_probabilities[row, token]))

    def end(self) -> None:
        """Finish the replies that `generate` has ended by a token that is not among the end ids."""
        for reply in self.replies:
            reply.finish_reason = reply.finish_reason or "stop"

    def is_done(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows have finished, (B,), as a stopping criterion."""
        return torch.tensor([bool(reply.finish_reason) for reply in self.replies], device=input_ids.device)

    def _add(self, request: ChatRequest, reply: Reply, token: int, log_probability: float) -> None:
        reply.ids.append(token)
        reply.num_new_tokens += 1
        reply.log_probabilities.append(log_probability)
        text = self._processor.batch_decode(torch.tensor([reply.ids]))[0]
        ends = [end for stop in request.stop if (end := text.find(stop)) >= 0]
        if token in self._end_ids or ends:
            reply.finish_reason = "stop"
        elif len(reply.ids) >= request.max_new_tokens:
            reply.finish_reason = "length"
        if ends:
            text = text[: min(ends)].strip()
        elif not reply.finish_reason:
            text = text.rstrip(_UNFINISHED)
            text = text[: len(text) - _num_begun(text, request.stop)].rstrip()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, reply.text, strict=False)))
        if len(text) > same and (same == len(reply.text) or reply.finish_reason):  # a broken byte changes those before
            reply.text += text[same:]
            request.on_text(text[same:])
        if not reply.finish_reason and request.is_cancelled():
            reply.finish_reason = "cancelled"


def _num_begun(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    lengths = [count for each in stop for count in range(1, len(each)) if text.endswith(each[:count])]
    return max(lengths, default=0)
