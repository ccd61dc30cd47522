"""One training row: the only check of what it must hold, and its ids."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pallava.data.sources.files import RowDropped, as_sound_object, tidy
from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image
from pallava.io.hashing import hash_json
from pallava.io.texts import find_damage
from pallava.prompts import (
    IGNORE_INDEX,
    IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
    Encoded,
    Turn,
    choose_template,
    encode_conversation,
    get_template,
    turns_from_conversations,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Fault(RowDropped):
    """A fault of a training row; if it does not stop training, a part of the row teaches nothing."""

    def __init__(self, reason: str, message: str, stops_training: bool = True) -> None:
        super().__init__(reason, message)
        self.stops_training = stops_training


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """A row of the right form: names of its images, who says each message, questions and answers."""

    images: list[str]
    speakers: list[str]  # without "system"
    turns: list[Turn]  # with an answer to learn from


def is_file_name(value: Any) -> bool:
    """Return whether a JSON value can be the name of a file."""
    return isinstance(value, str) and bool(value) and not find_damage(value)


def check_image(path: str | Path, max_pixels: int, *, decode: bool) -> None:
    """Raise RowDropped for an image that is "missing", "unreadable" or "too_large".

    The header decides, or all of the pixels, at some hundred times the cost.
    """
    try:
        width, height = image_size(path)
        if width * height > max_pixels:
            raise RowDropped("too_large", f"'{path}' has {width} x {height} pixels, more than {max_pixels}")
        if decode:
            open_image(path)
    except ImageError as error:
        raise RowDropped("unreadable" if os.path.exists(path) else "missing", str(error)) from None  # noqa: PTH110


def read_row(value: Any) -> TrainingRow:
    """Read a row of ``{"image", "conversations"}``; "image" is a name, a list of names, or absent.

    Raises:
        RowDropped: The row is malformed.
    """
    try:
        value = as_sound_object(value)
        found = value.get("image")
        images = [] if found in (None, "") else found if isinstance(found, list) else [found]
        if not all(map(is_file_name, images)):
            raise PallavaError(f"'image' must be the name of a file or a list of names, got {found!r:.80}")
        conversations = value.get("conversations")
        if not isinstance(conversations, list) or not conversations:
            raise PallavaError(f"the row lacks conversations; its keys are {', '.join(map(str, value))[:80]}")
        turns = [turn for turn in turns_from_conversations(conversations) if turn.answer is not None]
        for text in (message["value"].replace(IMAGE_TOKEN, "").strip() for message in conversations):
            if text and not tidy(text):
                raise PallavaError(f"a message must have words, got {text!r:.80}")
    except PallavaError as error:
        raise RowDropped("malformed", str(error)) from None
    return TrainingRow(images, [m["from"] for m in conversations if m["from"] != "system"], turns)


def find_faults(row: TrainingRow) -> Iterator[Fault]:
    """Yield the faults of a row that do not depend on its image files or on a tokenizer."""
    turns, speakers = row.turns, row.speakers
    if not turns or speakers != ["human", "gpt"] * (len(speakers) // 2):
        found = ", ".join(speakers) or "none"
        yield Fault("not_alternating", f"the speakers must be human, gpt, human, gpt, got {found}", not turns)
    if not turns:
        return
    num_markers = sum(turn.question.count(IMAGE_TOKEN) for turn in turns)
    if num_markers != len(row.images):
        yield Fault("lost_marker", f"{num_markers} image markers for {len(row.images)} images")
    answers = [turn.answer or "" for turn in turns]
    if any(IMAGE_TOKEN in answer for answer in answers):
        yield Fault("lost_marker", "an answer holds an image marker", stops_training=False)
    if not all(answer.strip() for answer in answers):
        yield Fault("empty_answer", "an answer is empty", stops_training=not any(map(str.strip, answers)))


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """What the ids of a row depend on, apart from the row."""

    tokenizer: str  # its hash
    prompt_template: dict[str, Any]
    context_length: int  # largest number of tokens in a sample, including visual ones
    num_visual_tokens: int  # largest number that the model makes of one image

    @classmethod
    def make(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompt_template: Any = None,
        context_length: int = 2048,
        num_visual_tokens: int = 196,
    ) -> EncodingSettings:
        """Make the settings for a tokenizer and a template (its name, or itself; None: the tokenizer's own).

        Raises:
            PallavaError: The template does not exist, or is not for this tokenizer, or one image fills the context.
        """
        if not 0 < num_visual_tokens < context_length:
            raise PallavaError(
                f"num_visual_tokens must be at least 1 and leave room for text in context_length {context_length}, got "
                f"{num_visual_tokens}"
            )
        template = choose_template(prompt_template, tokenizer).to_dict()
        return cls(_hash_tokenizer(tokenizer), template, context_length, num_visual_tokens)


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of what a tokenizer does to text, the same in every process."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        for state in ("truncation", "padding"):  # set by its last caller
            content.pop(state, None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "options": repr(sorted(tokenizer.init_kwargs.items()))}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hash_json([type(tokenizer).__name__.removesuffix("Fast"), content, special])


def encode_turns(
    row: TrainingRow, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings
) -> tuple[Encoded, int, int]:
    """Return the whole row's ids and labels, its number of text tokens, and for how many its images leave room."""
    encoded = encode_conversation(row.turns, tokenizer, get_template(settings.prompt_template))
    num_tokens = len(encoded.input_ids) - encoded.input_ids.count(IMAGE_TOKEN_INDEX)
    return encoded, num_tokens, settings.context_length - len(row.images) * settings.num_visual_tokens


def encode_row(
    value: Any, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings
) -> tuple[Encoded, list[str], bool]:
    """Return a training row's ids and labels, its images, and whether an answer was cut, or raise RowDropped."""
    row = read_row(value)
    for fault in find_faults(row):
        if fault.stops_training:
            raise fault
    encoded, num_tokens, room = encode_turns(row, tokenizer, settings)
    if num_tokens <= room:
        return encoded, row.images, False
    num_texts = accumulate(index != IMAGE_TOKEN_INDEX for index in encoded.input_ids)
    end = next(index for index, count in enumerate(num_texts) if count > room)
    ids, labels = encoded.input_ids[:end], encoded.labels[:end]
    is_marker_lost = ids.count(IMAGE_TOKEN_INDEX) < len(row.images)
    if is_marker_lost or all(label == IGNORE_INDEX for label in labels):
        lost = "an image marker" if is_marker_lost else "every answer"
        raise RowDropped("over_room", f"{lost} would be lost: room for {room} of {num_tokens} tokens")
    return Encoded(ids, labels), row.images, any(label != IGNORE_INDEX for label in encoded.labels[end:])
