"""Turn pictures and words into the model's inputs: the same tiles and ids in training, chat and evaluation.

Conversations come in Hugging Face's form, as rendered prompts, or as in training files. The translations are in this
file, if a long one, because only the processor uses them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from pallava.errors import PallavaError, check_paths
from pallava.image_sources import check_is_local, read_url
from pallava.images import open_image
from pallava.model.cache import pad_ids
from pallava.model.versions import NEEDS_CLASS_NAMES
from pallava.model.weights import StrPath
from pallava.prompts import (
    IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
    OWN_TEMPLATE,
    PromptTemplate,
    Turn,
    build_question,
    choose_template,
    encode_prompt,
    end_token_ids,
    get_template,
    turns_from_conversations,
    write_question,
)
from pallava.tiling import TileSpec, make_tiles

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
Image = Any
"""Anything that `pallava.images.open_image` opens."""
Text = str | Sequence[Mapping[str, str]]
"""A question, a prompt that `apply_chat_template` wrote, or a conversation of
``{"from": "human" | "gpt" | "system", "value": ...}`` that ends with a question."""
_IGNORED_OPTIONS = {"padding", "legacy", "add_special_tokens", "add_generation_prompt"}
"""Options that transformers' pipelines pass to every processor; here padding is always on the left, special tokens are
the template's, and it always ends where the answer begins."""


class PALLaVAProcessor(ProcessorMixin):
    """Tiles images and writes prompts.

    Args:
        image_processor: The encoder's own preprocessing, of which size, mean, std and resampling are used.
        tokenizer: The language model's.
        prompt_template: A name in `pallava.prompts.TEMPLATES`, "tokenizer" for its own chat template, a template, or
            its dictionary (None: that of the tokenizer's family).
        chat_template: The same as Jinja, for `tokenizer.apply_chat_template` (default: made from `prompt_template`).
        reads_tiles: Whether the model reads tiles; if not, they are not cut.
    """

    attributes = ["image_processor", "tokenizer"]
    valid_kwargs = ["prompt_template", "chat_template", "reads_tiles"]
    if NEEDS_CLASS_NAMES:
        image_processor_class = "CLIPImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        prompt_template: str | Mapping[str, Any] | PromptTemplate | None = None,
        chat_template: str | None = None,
        reads_tiles: bool = True,
    ) -> None:
        # A given one is not compared with the tokenizer: a folder that was trained with it must open.
        is_own = prompt_template is None or prompt_template == OWN_TEMPLATE
        template = choose_template(prompt_template, tokenizer) if is_own else get_template(prompt_template)  # type: ignore[arg-type]
        chat_template = chat_template or jinja_template(template)
        try:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)
        except TypeError as error:
            raise PallavaError(f"a model folder cannot hold these parts ({error}); use load_image_processor") from None
        self.prompt_template = template.to_dict()
        self.reads_tiles = reads_tiles
        _ = self.tile_spec  # refuses a wrong image processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, *args: Any, **kwargs: Any) -> Any:
        """Open the processor of a model folder; other arguments are those of transformers."""
        check_paths(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def tile_spec(self) -> TileSpec:
        """Size, normalization and filter of a tile, and whether tiles are cut."""
        spec = TileSpec.from_image_processor(self.image_processor)
        return dataclasses.replace(spec, overview_only=not self.reads_tiles)

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
        return_tensors: str | None = "pt",
        allow_urls: bool = False,
        **options: Any,
    ) -> BatchFeature:
        """Make the inputs of `PALLaVAForConditionalGeneration.generate`.

        Args:
            text: One question, prompt or conversation, or a batch of them. A question without ``<image>`` gets the
                markers of its images: of all if it is alone, of one each in a batch of as many as images.
            images: One image, those of the whole batch in reading order (a list, or an array of four dimensions), or a
                list for each text.
            system: System message before each question.
            return_tensors: ``pt``.
            allow_urls: Whether to fetch images that ``http:`` and ``https:`` URLs name.
            **options: Those of transformers' pipelines, which change nothing here.

        Returns:
            `input_ids` and `attention_mask` (B, L), padded on the left; with images also `pixel_values`
            (sum of 1+N, 3, P, P) and `tiles_per_image` (I,).

        Raises:
            PallavaError: The images cannot be assigned to texts, one cannot be opened, or an option is unknown.
        """
        _check_options(options, return_tensors)
        is_one = isinstance(text, str) or (len(text) > 0 and isinstance(text[0], Mapping))
        texts: list[Any] = [text] if is_one else list(text)
        images, per_text = _share_images(texts, images)
        prompts = [
            encode_prompt(self._turns(text, count, system), self.tokenizer, self.template)
            for text, count in zip(texts, per_text or [0] * len(texts), strict=True)
        ]
        # The model compares their sums over the batch, which could agree by chance.
        for number, (prompt, expected) in enumerate(zip(prompts, per_text or [], strict=False), 1):
            if images and (found := prompt.count(IMAGE_TOKEN_INDEX)) != expected:
                raise PallavaError(
                    f"text {number} must have one <image> for each of its images, got {found} image marker(s) and "
                    f"{expected} image(s)"
                )
        inputs = dict(
            zip(("input_ids", "attention_mask"), pad_ids(prompts, self.tokenizer.pad_token_id or 0), strict=True)
        )
        if images:
            tiles = [make_tiles(open_image(image, allow_urls=allow_urls), self.tile_spec) for image in images]
            inputs["pixel_values"] = torch.cat(tiles)
            inputs["tiles_per_image"] = torch.tensor([len(image) for image in tiles])
        return BatchFeature(inputs)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        continue_final_message: bool = False,
        return_tensors: str | None = "pt",
        allow_urls: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Write one conversation, or several, in the form that the model was trained on.

        `read_messages` describes their messages; each conversation ends with a question. `allow_urls` is that of
        `__call__`. Other arguments than `tokenize` and `return_dict` cannot change how the model was trained, and are
        there for transformers' pipelines.

        Returns:
            A prompt or a list of prompts; with `tokenize` ids (B, L), and with `return_dict` the result of `__call__`.

        Raises:
            PallavaError: A message has another form, or the conversation does not end with a question.
        """
        _check_options({**options, **(processor_kwargs or {})}, return_tensors)
        if continue_final_message or chat_template not in (None, self.chat_template):
            raise PallavaError("a conversation must use the folder's own chat template and end with a question")
        is_one = isinstance(conversation[0], Mapping)
        read = [read_messages(each) for each in ([conversation] if is_one else conversation)]  # type: ignore[arg-type]
        if not allow_urls:  # before a pipeline of transformers 4 fetches them by itself
            for image in (image for _, found in read for image in found):
                check_is_local(image)
        turns = [_read_question(messages) for messages, _ in read]
        texts = [render_prompt(each, self.template, self.tokenizer.eos_token) for each in turns]
        if not tokenize:
            return texts[0] if is_one else texts
        images = [found for _, found in read]
        inputs = self([messages for messages, _ in read], images=images if any(images) else None, allow_urls=allow_urls)
        return inputs if return_dict else inputs["input_ids"]

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Turn ids (B, L) into texts without padding, end tokens and image markers; a row of `generate` has both parts.

        Cut the prompt off, ``ids[:, input_ids.shape[1] :]``, for the answers alone. A tokenizer that would clean up
        spaces does not: it changes words (``a 'so called' cell``), and what has been streamed.
        """
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        unread = {IMAGE_TOKEN_INDEX, *(self.end_token_ids if skip_special_tokens else ())}  # an end need not be special
        rows = [[int(index) for index in row if int(index) not in unread] for row in ids]
        decoded = self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)
        return [answer.strip() for answer in decoded]

    def post_process_image_text_to_text(self, ids: Tensor, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Turn ids (B, L) into texts in which no space is between the prompt and its answer.

        transformers' pipelines cut off the prompt by its text, and the answer alone is left as `batch_decode` has it.
        """
        mark = self.tokenizer.encode(self.template.instruction.split("{input}")[1], add_special_tokens=False)
        texts = []
        for row in ids.tolist():
            ends = [end for end in range(len(mark), len(row) + 1) if row[end - len(mark) : end] == mark]
            end = ends[-1] if ends else len(row)
            texts.append("".join(self.batch_decode([row[:end], row[end:]], **kwargs)))  # type: ignore[arg-type]
        return texts

    def _turns(self, text: Text, num_images: int, system: str | None) -> list[Turn]:
        if not isinstance(text, str):
            return _read_question([*([] if system is None else [{"from": "system", "value": system}]), *text])
        turns = parse_prompt(text, self.template, self.tokenizer.eos_token)
        if turns is None:
            return [Turn(build_question(text, num_images), system=system)]
        return turns if system is None else [dataclasses.replace(turns[0], system=system), *turns[1:]]


def _read_question(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    turns = turns_from_conversations(messages)
    if not turns or turns[-1].answer is not None:
        raise PallavaError(f"the conversation must end with a question, got {'an answer' if messages else 'nothing'}")
    return turns


def _check_options(options: Mapping[str, Any], return_tensors: Any) -> None:
    asked_for = {name for name, value in options.items() if value is not None and value is not False}
    if unknown := sorted(asked_for - _IGNORED_OPTIONS):
        raise PallavaError(f"the processor of PA-LLaVA does not take {', '.join(unknown)}")
    if return_tensors not in (None, "pt"):
        raise PallavaError(f"return_tensors must be pt (PyTorch), got {return_tensors}")


def list_images(images: Image | Sequence[Image] | None) -> list[Image]:
    """Return one image, a list or tuple of images, or an array of four dimensions as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]


def _share_images(texts: Sequence[Text], images: Any) -> tuple[list[Image], list[int] | None]:
    """Return all images in reading order, and their number for each text; None if only its markers show it."""
    images = list_images(images)
    if len(images) == len(texts) and all(isinstance(each, (list, tuple)) for each in images):
        return [image for each in images for image in each], [len(each) for each in images]
    if len(texts) == 1:
        return images, [len(images)]
    if len(images) in (0, len(texts)):
        return images, [min(len(images), 1)] * len(texts)
    if all(not isinstance(text, str) or "<image>" in text for text in texts):
        return images, None
    raise PallavaError(
        f"{len(images)} images cannot be assigned to {len(texts)} questions; give one each, or <image> in every text"
    )


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[Any]]:
    """Translate a conversation from Hugging Face's form to that of training files.

    A message has a `role` (``user``, ``assistant``, ``system``) and a `content`: a text, or a list of parts
    ``{"type": "text", "text": ...}`` and ``{"type": "image", "image" | "url" | "path" | "base64": ...}``, or OpenAI's
    ``{"type": "image_url", "image_url": {"url": ...}}``, ``{"type": "input_image", "image_url": ...}``.

    Returns:
        Messages of ``from`` and ``value``, and the images in reading order; a part without one is a marker alone.

    Raises:
        PallavaError: A message has another role or shape.
    """
    conversation, images = [], []
    for position, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _SPEAKERS or "content" not in message:
            raise PallavaError(f"message {position} must have a role (user, assistant or system) and a content")
        text, pictures = _read_content(message["content"], position)
        images += [image for part in pictures for image in _named_image(part)]
        value = build_question(text, len(pictures)) if pictures else text
        conversation.append({"from": _SPEAKERS[role], "value": value})
    return conversation, images


def _read_content(content: Any, position: int) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the text of a message, and its image parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts, pictures = [], []
    for part in parts if isinstance(parts, Sequence) else [parts]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url", "input_image"):
            pictures.append(part)
        else:
            found = f"a {kind} with {', '.join(map(str, part))}" if kind else type(part).__name__
            raise PallavaError(f"message {position} must have parts that are texts or images, got {found}")
    return "\n".join(texts), pictures


def _named_image(part: Mapping[str, Any]) -> list[Any]:
    if part.get("image_url") is not None:  # as OpenAI has it
        part = part["image_url"] if isinstance(part["image_url"], Mapping) else {"url": part["image_url"]}
    if isinstance(part.get("base64"), str):
        return [read_url("data:;base64," + part["base64"])]
    return [part[key] for key in ("image", "url", "path") if part.get(key) is not None][:1]


def render_prompt(turns: Sequence[Turn], template: PromptTemplate, end_token: str | None) -> str:
    """Render the text before the answer to the last turn; `parse_prompt` reads it back."""
    text = ""
    for round_, turn in enumerate(turns, start=1):
        text += write_question(turn, round_, template)
        if turn.answer is not None:
            text += (template.answer_prefix or "") + turn.answer + _answer_end(template, end_token)
    return text


def parse_prompt(text: str, template: PromptTemplate, end_token: str | None) -> list[Turn] | None:
    """Return the turns of a text that `render_prompt` or the Jinja template rendered; None for another text.

    Raises:
        PallavaError: The text ends with an answer.
    """
    before, after = template.instruction.split("{input}")
    opening, system = (template.begin or "") + before, None
    if template.question_system is None:
        system_before, system_after = template.system.split("{system}")
        message, found, _ = text.removeprefix(system_before).partition(system_after + before)
        if found and text.startswith(system_before):
            opening, system = system_before + message + found, message
    rounds = text.removeprefix(opening)
    if not text.startswith(opening) or after not in rounds:
        return None
    after += template.answer_prefix or ""
    end = _answer_end(template, end_token)
    *answered, last = rounds.split(end + before)
    question_end = template.instruction.partition("{input}")[2]
    if not last.endswith(question_end):
        raise PallavaError("the prompt ends with an answer, or with the beginning of one; end it with a question")
    pairs = [each.partition(after)[::2] for each in answered]
    turns = [Turn(question, answer) for question, answer in pairs] + [Turn(last.removesuffix(question_end))]
    return [dataclasses.replace(turns[0], system=system), *turns[1:]]


def _answer_end(template: PromptTemplate, end_token: str | None) -> str:
    return template.suffix + ("" if template.suffix_as_eos else end_token or "") + template.sep


def jinja_template(template: PromptTemplate) -> str:
    """Return the template as Jinja, for messages with `role` and `content`; image parts become markers in front."""
    question_before, question_after = template.instruction.split("{input}")
    in_question = template.question_system is not None
    system_before, _, system_after = (template.question_system or template.system).partition("{system}")
    texts = {
        "image_marker": IMAGE_TOKEN,
        "begin": template.begin or "",
        "system_in_question": in_question,
        "system_before": system_before,
        "system_after": system_after,
        "question_before": question_before,
        "question_after": question_after,
        "answer_prefix": template.answer_prefix or "",
        "suffix": template.suffix,
        "suffix_as_eos": template.suffix_as_eos,
        "sep": template.sep,
    }
    settings = "".join(
        f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in texts.items()
    )
    return settings + Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
