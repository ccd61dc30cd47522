"""From pictures and words to what the model reads: the same tiles and ids in training, chat and evaluation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.prompts import (
    PromptTemplate,
    Turn,
    build_question,
    encode_prompt,
    end_token_ids,
    get_template,
    turns_from_conversations,
)
from pallava.tiling import TileSpec, make_tiles

Image = Any
"""Whatever `pallava.images.open_image` opens: a path, bytes, an open file, a PIL image."""
Text = str | Sequence[Mapping[str, str]]
"""A question, or a conversation of ``{"from": "human" | "gpt" | "system", "value": ...}`` that ends with one."""


class PALLaVAProcessor(ProcessorMixin):
    """Tiles images and writes prompts.

    Args:
        image_processor: The encoder's own preprocessing, of which size, mean, std and resampling are used.
        tokenizer: The language model's.
        prompt_template: A name in `pallava.prompts.TEMPLATES`, a template, or its dictionary.
        chat_template: The same as Jinja, for `tokenizer.apply_chat_template`; made from `prompt_template`.
    """

    attributes = ["image_processor", "tokenizer"]
    valid_kwargs = ["prompt_template", "chat_template"]
    image_processor_class = "CLIPImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        prompt_template: str | Mapping[str, Any] | PromptTemplate = "llama3_chat",
        chat_template: str | None = None,
    ) -> None:
        template = get_template(prompt_template)
        chat_template = chat_template or jinja_template(template)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.prompt_template = template.to_dict()
        self.tile_spec = TileSpec.from_image_processor(image_processor)

    @property
    def template(self) -> PromptTemplate:
        """The prompt template."""
        return get_template(self.prompt_template)

    @property
    def end_token_ids(self) -> list[int]:
        """Every id that ends an answer."""
        return end_token_ids(self.tokenizer, self.template)

    def __call__(  # type: ignore[override]
        self,
        text: Text | Sequence[Text],
        images: Image | Sequence[Image] | None = None,
        *,
        system: str | None = None,
    ) -> BatchFeature:
        """Makes the inputs of `PALLaVAForConditionalGeneration.generate`.

        Args:
            text: One question or conversation, or a batch of them. A question without ``<image>`` gets the marker
                of its image: all images where it is alone, one each in a batch of as many questions as images.
            images: One image, or those of the whole batch in reading order.
            system: A system message before each question.

        Returns:
            `input_ids` and `attention_mask` (B, L), padded on the left; with images also `pixel_values`
            (sum of 1+N, 3, P, P) and `tiles_per_image` (I,).

        Raises:
            PallavaError: The images cannot be shared out, or one cannot be opened.
        """
        is_one = isinstance(text, str) or (len(text) > 0 and isinstance(text[0], Mapping))
        texts: list[Any] = [text] if is_one else list(text)
        images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
        per_text = _share_images(texts, len(images))
        prompts = [
            encode_prompt(_turns(text, count, system), self.tokenizer, self.template)
            for text, count in zip(texts, per_text, strict=True)
        ]
        inputs: dict[str, Tensor] = dict(zip(("input_ids", "attention_mask"), self._pad(prompts), strict=True))
        if images:
            tiles = [make_tiles(open_image(image), self.tile_spec) for image in images]
            inputs["pixel_values"] = torch.cat(tiles)
            inputs["tiles_per_image"] = torch.tensor([len(image) for image in tiles])
        return BatchFeature(inputs)

    def batch_decode(self, ids: LongTensor, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Answers as text, without padding and end tokens."""
        decoded = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return [answer.strip() for answer in decoded]

    def _pad(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        length = max(len(ids) for ids in prompts)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (length - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
        return ids, mask

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes beside tokenizer and image processor."""
        return {key: value for key, value in super().to_dict().items() if key != "tile_spec"}


def jinja_template(template: PromptTemplate) -> str:
    """The template as Jinja, for messages with `role` and `content`."""
    before, after = template.instruction.split("{input}")
    system_before, _, system_after = template.system.partition("{system}")

    def quoted(text: str) -> str:
        return "{{ " + json.dumps(text) + " }}" if text else ""

    end = quoted(template.suffix) if template.suffix_as_eos else quoted(template.suffix) + "{{ eos_token }}"
    return (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        + quoted(system_before)
        + "{{ message['content'] }}"
        + quoted(system_after)
        + "{% elif message['role'] == 'user' %}"
        + quoted(before)
        + "{{ message['content'] }}"
        + quoted(after)
        + "{% else %}{{ message['content'] }}"
        + end
        + quoted(template.sep)
        + "{% endif %}{% endfor %}"
    )


def _turns(text: Text, num_images: int, system: str | None) -> list[Turn]:
    if isinstance(text, str):
        return [Turn(build_question(text, num_images), system=system)]
    messages = list(text)
    if system is not None:
        messages.insert(0, {"from": "system", "value": system})
    return turns_from_conversations(messages)


def _share_images(texts: Sequence[Text], num_images: int) -> list[int]:
    """How many images are each text's, where the text does not say."""
    if len(texts) == 1:
        return [num_images]
    if num_images in (0, len(texts)):
        return [min(num_images, 1)] * len(texts)
    if all(not isinstance(text, str) or "<image>" in text for text in texts):
        return [0] * len(texts)
    raise PallavaError(
        f"{num_images} images for {len(texts)} questions: give one image each, or put <image> into every text."
    )
