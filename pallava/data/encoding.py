"""One training row as ids, or the reason why it cannot be trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pallava.errors import PallavaError
from pallava.prompts import (
    IGNORE_INDEX,
    IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
    Encoded,
    encode_conversation,
    get_template,
    turns_from_conversations,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the ids of a row depend on beside the row.

    Attributes:
        tokenizer: Hash of the tokenizer.
        prompt_template: The template as `PromptTemplate.to_dict` gives it.
        context_length: Most tokens of a sample, visual ones included.
        num_visual_tokens: What one image takes of them.
    """

    tokenizer: str
    prompt_template: dict[str, Any]
    context_length: int
    num_visual_tokens: int

    @classmethod
    def make(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompt_template: Any = "llama3_chat",
        context_length: int = 2048,
        num_visual_tokens: int = 196,
    ) -> Settings:
        """Settings for a tokenizer and a template (its name, or itself).

        Raises:
            PallavaError: No such template, or one image fills the context.
        """
        if context_length <= num_visual_tokens:
            raise PallavaError(
                f"context_length is {context_length}, and one image takes {num_visual_tokens} tokens of it: no room "
                "for text"
            )
        template = get_template(prompt_template).to_dict()
        return cls(tokenizer_hash(tokenizer), template, context_length, num_visual_tokens)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer does to text, the same in every process."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        for state in ("truncation", "padding"):  # set by whoever called it last
            content.pop(state, None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "options": repr(sorted(tokenizer.init_kwargs.items()))}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hash_of([type(tokenizer).__name__.removesuffix("Fast"), content, special])


def encode_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> tuple[Encoded, list[str], bool]:
    """Gives a training row's ids, its images, and whether an answer was cut.

    Raises:
        PallavaError: The row cannot be trained on; the message is a reason to count by.
    """
    images = _image_names(row.get("image"))
    conversations = row.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise PallavaError("no conversations")
    try:
        turns = turns_from_conversations(conversations)
    except PallavaError:
        raise PallavaError("malformed message") from None
    turns = [turn for turn in turns if turn.answer is not None]  # a last question without answer teaches nothing
    if not any((turn.answer or "").strip() for turn in turns):
        raise PallavaError("no answer")
    if sum(turn.question.count(IMAGE_TOKEN) for turn in turns) != len(images):
        raise PallavaError("number of image markers differs from the number of images")
    encoded = encode_conversation(turns, tokenizer, get_template(settings.prompt_template))
    room = settings.context_length - len(images) * settings.num_visual_tokens
    cut = _cut(encoded, room)
    if cut.input_ids.count(IMAGE_TOKEN_INDEX) < len(images):
        raise PallavaError("too long: an image marker would be lost")
    if all(label == IGNORE_INDEX for label in cut.labels):
        raise PallavaError("too long: no answer would be left")
    return cut, images, any(label != IGNORE_INDEX for label in encoded.labels[len(cut.labels) :])


def _cut(encoded: Encoded, room: int) -> Encoded:
    """The longest beginning with at most `room` tokens of text; markers are not counted."""
    if len(encoded.input_ids) <= room:
        return encoded
    text = 0
    for end, index in enumerate(encoded.input_ids):
        text += index != IMAGE_TOKEN_INDEX
        if text > room:
            return Encoded(encoded.input_ids[:end], encoded.labels[:end])
    return encoded


def _image_names(value: Any) -> list[str]:
    names = [] if value in (None, "") else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise PallavaError("image is neither a name nor a list of names")
    return names


def hash_of(values: Any) -> str:
    """SHA-256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
