"""A model that answers a batch of conversations, and computes nothing twice: neither an image, nor an earlier turn."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from pallava.errors import PallavaError
from pallava.images import MAX_PIXELS, open_image
from pallava.io.hashing import hash_bytes, hash_text
from pallava.model import Image, PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.cache import RowCaches, pad_ids
from pallava.prompts import IMAGE_TOKEN_INDEX, encode_answer, possible_answers
from pallava.serving.replies import ChatRequest, Picture, Reply, TogetherError, UnavailableError, Writer
from pallava.tiling import make_tiles

_ENCODED_AT_ONCE = 16  # pictures
_Key = tuple[int | str, ...]  # ids of a conversation, with the hash of the picture in the place of each image


class _Kept(NamedTuple):
    cache: Cache
    num_asked: int  # ids up to its first answer


class ChatModel:
    """Answers conversations, in batches whose replies are those of each conversation alone.

    `see` and `request` may be called from any thread, `reply` from one at a time.

    Args:
        model: The first that `pallava.load` returns.
        processor: The second.
        num_pictures: Number of pictures whose visual tokens are kept.
        num_positions: Number of positions, of all conversations together, whose keys and values are kept; a longer
            conversation is kept until the next one.
    """

    def __init__(
        self,
        model: PALLaVAForConditionalGeneration,
        processor: PALLaVAProcessor,
        *,
        num_pictures: int = 64,
        num_positions: int = 16384,
    ) -> None:
        self.model, self.processor = model, processor
        self._num_pictures, self._num_positions = num_pictures, num_positions
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def see(self, image: Image, *, max_pixels: int | None = MAX_PIXELS) -> Picture:
        """Open an image, as `pallava.open_image` does.

        Raises:
            PallavaError: It cannot be opened.
        """
        opened = None
        if isinstance(image, str) and image.startswith("data:"):
            key = hash_bytes(image.encode())  # a client sends it again at every turn: it is opened once
        else:
            opened = open_image(image, max_pixels=max_pixels)
            key = hash_text(str(opened.size), hash_bytes(opened.tobytes()))
        with self._lock:
            known = self._pictures.get(key)
        if known is None:
            opened = opened or open_image(image, max_pixels=max_pixels)
            known = Picture(key, make_tiles(opened, self.processor.tile_spec))
        with self._lock:
            known = self._pictures.setdefault(key, known)
            self._pictures.move_to_end(key)
            while len(self._pictures) > self._num_pictures:
                self._pictures.popitem(last=False)
        return known

    def request(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Picture] = (),
        max_new_tokens: int = 256,
        **how: Any,
    ) -> ChatRequest:
        """Make a request of a conversation in Hugging Face's form, whose image parts are markers of the pictures.

        Other arguments are fields of `ChatRequest`.

        Raises:
            PallavaError: The conversation has another form, or leaves no room for a reply.
        """
        ids = self.processor.apply_chat_template(messages, tokenize=True)[0].tolist()
        if (num_markers := ids.count(IMAGE_TOKEN_INDEX)) != len(pictures):
            raise PallavaError(
                f"a conversation must have one <image> for each image, got {num_markers} for {len(pictures)} image(s); "
                "leave the word <image> out of its texts"
            )
        question = messages[-1]["content"]
        if not isinstance(question, str):
            question = "\n".join(part["text"] for part in question if part["type"] == "text")
        most = getattr(self.model.config.text_config, "max_position_embeddings", None) or 2**31
        room = most - len(ids) - len(pictures) * (self.model.config.num_visual_tokens - 1)
        if room < 1:
            raise PallavaError(
                f"the conversation has {most - room} tokens with its images, which leaves no room for an answer in the "
                f"model's {most}; begin a new one, or show fewer images"
            )
        return ChatRequest(question, ids, pictures, min(max_new_tokens, room), **how)

    @torch.inference_mode()
    def reply(self, requests: Sequence[ChatRequest], *, seed: int | None = None, **options: Any) -> list[Reply]:
        """Reply to requests, together and greedily by default.

        Args:
            requests: At least one.
            seed: Seed of torch's random numbers, for sampling.
            **options: Those of transformers' `generate`, such as ``do_sample``, but for beams.

        Raises:
            UnavailableError: The device has too little memory; a `TogetherError` if each request alone may have it.
        """
        if options.get("do_sample"):
            torch.manual_seed(torch.seed() if seed is None else seed)
        if options.get("num_beams", 1) != 1:
            raise PallavaError("a reply that is written token by token cannot be searched with beams; use num_beams=1")
        writer = Writer(requests, self.processor, self.model.end_token_ids)
        try:
            return self._write(requests, writer, options)
        except torch.OutOfMemoryError:
            pass  # with its traceback, which holds what was computed
        self._kept.clear()
        is_begun = len(requests) == 1 or any(reply.text for reply in writer.replies)
        raise (UnavailableError if is_begun else TogetherError)(
            f"{self.model.device} has too little memory for {len(requests)} conversation(s) at once; show fewer "
            "images, or begin a new conversation"
        )

    def _write(self, requests: Sequence[ChatRequest], writer: Writer, options: Mapping[str, Any]) -> list[Reply]:
        self._encode([picture for request in requests for picture in request.pictures])
        keys = [_key(request) for request in requests]
        known = [self._find(key, request) for key, request in zip(keys, requests, strict=True)]
        caches = RowCaches([(cache, count) for cache, count, _ in known])
        self.model.generate(
            *pad_ids([request.ids for request in requests]),
            visual_tokens=[picture.tokens for request in requests for picture in request.pictures],
            cache=caches,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            streamer=writer,
            logits_processor=[writer.note_scores],
            stopping_criteria=[writer.is_done],
            **options,
        )
        replies = writer.replies
        found = caches.split([len(reply.ids) for reply in replies])
        for reply, request, key, (_, count, num_asked) in zip(replies, requests, keys, known, strict=True):
            reply.num_prompt_tokens = _num_positions(request.ids, request)
            # What is less than a question may be another client's, and nobody is to learn what others asked.
            reply.num_cached_tokens = count if num_asked < len(key) else 0
        self._weigh(requests, replies, found)
        for key, reply, cache, (_, _, num_asked) in zip(keys, replies, found, known, strict=bool(found)):
            self._keep((*key, *reply.ids[:-1]), cache, num_asked)
        return replies

    def _encode(self, pictures: Sequence[Picture]) -> None:
        new = list({picture.key: picture for picture in pictures if picture.tokens is None}.values())
        encoded = dict[str, torch.Tensor]()
        for start in range(0, len(new), _ENCODED_AT_ONCE):
            some = new[start : start + _ENCODED_AT_ONCE]
            tokens = self.model.encode_images([picture.tiles for picture in some])
            encoded |= zip([picture.key for picture in some], tokens, strict=True)
        for picture in pictures:
            if picture.tokens is None:
                picture.tokens, picture.tiles = encoded[picture.key], None

    def _weigh(self, requests: Sequence[ChatRequest], replies: Sequence[Reply], caches: Sequence[Cache]) -> None:
        """Find the probabilities of the possible answers to questions that allow only a few."""
        answers = [
            possible_answers(request.question, reply.text) for request, reply in zip(requests, replies, strict=True)
        ]
        chosen = [number for number, own in enumerate(answers) if own and replies[number].finish_reason == "stop"]
        if not chosen:
            return
        ids, mask = pad_ids([requests[number].ids for number in chosen])
        tokenizer, template = self.processor.tokenizer, self.processor.template
        scores = self.model.score_answers(
            ids,
            [[encode_answer(text, tokenizer, template) for text in answers[number]] for number in chosen],
            mask,
            visual_tokens=[picture.tokens for number in chosen for picture in requests[number].pictures],
            cache=RowCaches([(caches[number], replies[number].num_prompt_tokens - 1) for number in chosen])
            if caches
            else None,
        )
        for number, found in zip(chosen, scores, strict=True):
            replies[number].choices = dict(zip(answers[number], found.softmax(0).tolist(), strict=True))

    def _find(self, key: _Key, request: ChatRequest) -> tuple[Cache, int, int]:
        """Return the kept cache that begins as a conversation does, how many positions agree, and `num_asked`.

        The last token of the prompt is always computed, since the answer follows from it.
        """
        best, kept = 0, _Kept(DynamicCache(), 0)
        for other, each in self._kept.items():
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(other, key[:-1], strict=False)))
            if same > best:
                best, kept = same, each
        num_asked = kept.num_asked if best >= kept.num_asked > 0 else len(key)
        return kept.cache, _num_positions(request.ids[:best], request), num_asked

    def _keep(self, key: _Key, cache: Cache, num_asked: int) -> None:
        for other in [other for other in self._kept if other == key[: len(other)]]:
            del self._kept[other]  # the new one has all of it
        self._kept[key] = _Kept(cache, num_asked)
        lengths = [each.cache.get_seq_length() for each in self._kept.values()]
        while len(lengths) > 1 and sum(lengths) > self._num_positions:
            self._kept.popitem(last=False)
            del lengths[0]


def _key(request: ChatRequest) -> _Key:
    pictures = iter(request.pictures)
    return tuple(next(pictures).key if index == IMAGE_TOKEN_INDEX else index for index in request.ids)


def _num_positions(ids: Sequence[int], request: ChatRequest) -> int:
    """Return how many positions some first ids of a request take, where an image takes as many as its tokens."""
    pictures = request.pictures[: ids.count(IMAGE_TOKEN_INDEX)]
    return len(ids) - len(pictures) + sum(len(picture.tokens) for picture in pictures if picture.tokens is not None)
