"""One conversation with a model: images, questions and answers, of which nothing is computed twice."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from pallava.images import open_image
from pallava.model import Image, PALLaVAForConditionalGeneration, PALLaVAProcessor, list_images
from pallava.prompts import IMAGE_TOKEN_INDEX
from pallava.tiling import make_tiles


class Session:
    """A conversation. Each image is encoded once; keys and values of earlier turns are kept.

    Answers are those of `pallava.ask` with the same images and history.

    Args:
        model: The first that `pallava.load` returns.
        processor: The second.
        images: Images of the first question, as in `show`.
    """

    def __init__(
        self,
        model: PALLaVAForConditionalGeneration,
        processor: PALLaVAProcessor,
        images: Image | Sequence[Image] | None = None,
    ) -> None:
        self._model, self._processor = model, processor
        self._messages: list[dict[str, Any]] = []
        self._visual_tokens: list[Tensor] = []
        self._new_images = 0
        self._cached_ids: list[int] = []  # that the cache holds keys and values of
        self._cache: Cache = DynamicCache()
        self.show(images)

    @torch.inference_mode()
    def show(self, images: Image | Sequence[Image] | None) -> None:
        """Add an image, in any form that `pallava.open_image` takes, or a list of them, to the next question.

        Raises:
            PallavaError: An image cannot be opened.
        """
        tiles = [make_tiles(open_image(image), self._processor.tile_spec) for image in list_images(images)]
        self._visual_tokens += list(self._model.encode_images(tiles)) if tiles else []
        self._new_images += len(tiles)

    @torch.inference_mode()
    def ask(self, question: str, **options: Any) -> str:
        """Answer the next question; greedily by default.

        The options are those of transformers' `generate`, such as `max_new_tokens`, or `streamer` for the answer's
        words as they come. A question that fails is not part of the conversation.
        """
        parts = [*[{"type": "image"}] * self._new_images, {"type": "text", "text": question}]
        messages = [*self._messages, {"role": "user", "content": parts}]
        prompt = self._processor.apply_chat_template(messages, tokenize=True)  # (1, L)
        cache = self._take_cache(prompt[0].tolist())
        ids = self._model.generate(prompt, visual_tokens=self._visual_tokens, cache=cache, **options)
        answer = self._processor.batch_decode(ids[:, prompt.shape[1] :])[0]
        self._keep_cache(cache, ids[0].tolist())
        self._messages, self._new_images = [*messages, {"role": "assistant", "content": answer}], 0
        return answer

    def _take_cache(self, prompt: list[int]) -> Cache:
        """Return the cache, cut to what the prompt begins with: an answer may be read back as other ids.

        The prompt's last token is always computed, since the answer follows from it.
        """
        cache, same = self._cache, zip(self._cached_ids, prompt[:-1], strict=False)
        kept = self._cached_ids[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))]
        self._cache, self._cached_ids = DynamicCache(), []  # what fails may leave half a turn in it
        if surplus := cache.get_seq_length() - self._num_positions(kept):
            cache.crop(-surplus)
        return cache

    def _keep_cache(self, cache: Cache, ids: list[int]) -> None:
        """Keep the cache of a turn, unless `generate` could not use it; the last new token is not in it."""
        if cache.get_seq_length() == self._num_positions(ids[:-1]):
            self._cache, self._cached_ids = cache, ids[:-1]

    def _num_positions(self, ids: list[int]) -> int:
        images = [len(tokens) for tokens in self._visual_tokens[: ids.count(IMAGE_TOKEN_INDEX)]]
        return len(ids) - len(images) + sum(images)
