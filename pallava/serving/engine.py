"""The language model in another server on this machine, such as vLLM: ours makes the embeddings, that one the words."""

import base64
import io
import threading
from collections.abc import Sequence
from typing import Any

import openai
import torch
from torch import nn

from pallava.errors import PallavaError
from pallava.io.hosts import is_here
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.serving.chat_model import ChatModel
from pallava.serving.replies import ChatRequest, Reply, UnavailableError


class _Embeddings(nn.Module):
    """What is left of a language model whose layers are elsewhere."""

    def __init__(self, llm: Any) -> None:
        super().__init__()
        self.config, self._embeddings = llm.config, llm.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self._embeddings


class EngineModel(ChatModel):
    """A model whose language model runs in a server that takes embeddings (vLLM's ``--enable-prompt-embeds``).

    `reply` may be called from several threads; the engine batches by itself.

    Args:
        model: The first that `pallava.load` returns; the layers of its language model are dropped.
        processor: The second.
        url: Where the engine is, such as ``http://127.0.0.1:8001/v1``: on this machine.
        seconds: Longest time without a word from it.

    Raises:
        PallavaError: The URL is not on this machine, or the engine cannot be reached or serves several models.
    """

    def __init__(
        self, model: PALLaVAForConditionalGeneration, processor: PALLaVAProcessor, url: str, seconds: float = 600.0
    ) -> None:
        super().__init__(model, processor)
        check_is_here(url)
        model.llm = _Embeddings(model.llm)
        self._url, self._computing = url, threading.Lock()
        # Images must not leave the machine by way of a proxy that the environment names, or of a redirection.
        direct = openai.DefaultHttpxClient(trust_env=False, follow_redirects=False)
        self._client = openai.OpenAI(base_url=url, api_key="none", timeout=seconds, max_retries=0, http_client=direct)
        try:
            names = [each.id for each in self._client.models.list()]
        except openai.APIError as error:
            reason = str(error.__cause__ or error).rstrip(".")
            raise PallavaError(f"the engine at {url} cannot be reached ({reason}); start it first") from None
        if len(names) != 1:
            raise PallavaError(f"the engine at {url} must serve one model, got {', '.join(names) or 'none'}")
        self._name = names[0]

    def reply(self, requests: Sequence[ChatRequest], *, seed: int | None = None, **options: Any) -> list[Reply]:
        """Reply to requests, one after the other; the options are those of the API.

        Raises:
            PallavaError: The engine refuses a request.
            UnavailableError: It cannot be reached, or ends without an answer.
        """
        return [self._reply(request, seed, options) for request in requests]

    @torch.inference_mode()
    def _embed(self, request: ChatRequest) -> torch.Tensor:
        """Return the embeddings (L', H) of a prompt with its images."""
        with self._computing:
            self._encode(request.pictures)
            tokens = [picture.tokens for picture in request.pictures]
            return self.model.fuse(torch.tensor([request.ids]), tokens)["inputs_embeds"][0]

    def _reply(self, request: ChatRequest, seed: int | None, options: dict[str, Any]) -> Reply:
        embeddings = self._embed(request)
        reply, text = Reply(num_prompt_tokens=len(embeddings)), ""
        try:
            with self._client.completions.create(
                model=self._name,
                prompt="",
                max_tokens=request.max_new_tokens,
                temperature=options.get("temperature", 0),
                top_p=options.get("top_p", 1),
                seed=seed,
                stop=list(request.stop) or None,
                logprobs=1,
                stream=True,
                extra_body={"prompt_embeds": _encode_tensor(embeddings), "stop_token_ids": self.model.end_token_ids},
            ) as chunks:
                for chunk in chunks:
                    for choice in chunk.choices:
                        text += choice.text
                        _add(request, reply, text, choice)
                    if not reply.finish_reason and request.is_cancelled():
                        reply.finish_reason = "cancelled"
                        break
        except openai.BadRequestError as error:
            raise PallavaError(f"the engine at {self._url} refuses the request: {error}") from None
        except openai.APIError as error:
            raise UnavailableError(f"the engine at {self._url} failed: {error}") from None
        if not reply.finish_reason:
            raise UnavailableError(f"the engine at {self._url} ended in the middle of an answer; try again in a while")
        return reply


def check_is_here(url: str) -> None:
    """Refuse a URL that is not on this machine.

    Raises:
        PallavaError: The URL's host is not loopback.
    """
    if not is_here(url) or not url.startswith(("http://", "https://")):
        raise PallavaError(f"--engine must be a URL on this machine, such as http://127.0.0.1:8001/v1, got '{url}'")


def _add(request: ChatRequest, reply: Reply, text: str, choice: Any) -> None:
    found = (choice.logprobs and choice.logprobs.token_logprobs) or []
    reply.log_probabilities += [each for each in found if each is not None]
    reply.num_new_tokens += len(found)
    if choice.finish_reason:
        reply.finish_reason = "length" if choice.finish_reason == "length" else "stop"
    text = text.strip()
    new, reply.text = text[len(reply.text) :], text
    if new:
        request.on_text(new)


def _encode_tensor(values: torch.Tensor) -> str:
    """Return a tensor as vLLM takes it: what `torch.save` writes, in base64."""
    content = io.BytesIO()
    torch.save(values.cpu().clone(), content)
    return base64.b64encode(content.getvalue()).decode()
