"""Conversations as Hugging Face writes them: messages of `role` and `content`, Jinja templates, rendered prompts.

What a model sees is always made by `pallava.prompts`; this translates to and from it.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pallava.errors import PallavaError
from pallava.prompts import IMAGE_TOKEN, PromptTemplate, Turn, build_question

Message = Mapping[str, Any]
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_IMAGE_KEYS = ("image", "url", "path")


def read_messages(messages: Sequence[Message]) -> tuple[list[dict[str, str]], list[Any]]:
    """A conversation in Hugging Face's form as the one that training files have, with its images.

    Args:
        messages: Of `role` (``user``, ``assistant``, ``system``) and `content`: a text, or a list of parts
            ``{"type": "text", "text": ...}`` and ``{"type": "image", "image" | "url" | "path" | "base64": ...}``.

    Returns:
        Messages of ``from`` and ``value``, and what the image parts name, in reading order; a part that names nothing
        is a marker alone.

    Raises:
        PallavaError: A message has another role or shape.
    """
    conversation, images = [], []
    for position, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _SPEAKERS or "content" not in message:
            raise PallavaError(f"message {position} needs a role (user, assistant or system) and a content")
        text, count, found = _read_content(message["content"], position)
        images += found
        conversation.append({"from": _SPEAKERS[role], "value": build_question(text, count) if count else text})
    return conversation, images


def _read_content(content: Any, position: int) -> tuple[str, int, list[Any]]:
    """The text of a message, how many markers its image parts make, and the images that they name."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts: list[str] = []
    images: list[Any] = []
    count = 0
    for part in parts if isinstance(parts, Sequence) else [{}]:
        part = part if isinstance(part, Mapping) else {}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            count += 1
            images += _named_image(part)
        else:
            raise PallavaError(f"message {position} has a part that is neither a text nor an image")
    return "\n".join(texts), count, images


def _named_image(part: Mapping[str, Any]) -> list[Any]:
    if isinstance(part.get("image_url"), Mapping):  # as OpenAI has it
        part = {"url": part["image_url"].get("url")}
    if isinstance(part.get("base64"), str):
        return [base64.b64decode(part["base64"])]
    return [part[key] for key in _IMAGE_KEYS if part.get(key) is not None][:1]


def render_prompt(turns: Sequence[Turn], template: PromptTemplate, end_token: str | None) -> str:
    """The text up to where the answer to the last turn begins; `parse_prompt` reads it back."""
    system = turns[0].system
    text = template.system.format(system=system) if system else ""
    for round_, turn in enumerate(turns, start=1):
        text += template.instruction.format(input=turn.question, round=round_)
        if turn.answer is not None:
            text += turn.answer + _answer_end(template, end_token)
    return text


def parse_prompt(text: str, template: PromptTemplate, end_token: str | None) -> list[Turn] | None:
    """The turns of a text that was rendered by `render_prompt` or the Jinja template; None if it was not.

    Raises:
        PallavaError: It ends with an answer, so that there is nothing to ask.
    """
    before, after = template.instruction.split("{input}")
    system_before, system_after = template.system.split("{system}")
    opening = (
        rf"(?:{re.escape(system_before)}(?P<system>.*?){re.escape(system_after)})?{re.escape(before)}(?P<rounds>.*)"
    )
    found = re.fullmatch(opening, text, re.DOTALL)
    if found is None or after not in found["rounds"]:
        return None
    end = _answer_end(template, end_token)
    *answered, last = found["rounds"].split(end + before)
    if not last.endswith(after):
        raise PallavaError("the prompt ends with an answer, or with the beginning of one: end it with a question")
    rounds = [each.partition(after)[::2] for each in answered]
    turns = [Turn(question, answer) for question, answer in rounds] + [Turn(last.removesuffix(after))]
    return [Turn(turns[0].question, turns[0].answer, found["system"]), *turns[1:]]


def _answer_end(template: PromptTemplate, end_token: str | None) -> str:
    return template.suffix + ("" if template.suffix_as_eos else end_token or "") + template.sep


def jinja_template(template: PromptTemplate) -> str:
    """The template as Jinja, for messages with `role` and `content`; image parts become markers in front."""
    before, after = template.instruction.split("{input}")
    system_before, _, system_after = template.system.partition("{system}")

    def quoted(text: str) -> str:
        return "{{ " + json.dumps(text) + " }}" if text else ""

    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] != 'text' %}" + quoted(IMAGE_TOKEN) + "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{% if not loop.first or message['content'] | length > loop.length %}" + quoted("\n") + "{% endif %}"
        "{{ part['text'] }}{% endfor %}{% endif %}"
    )
    end = quoted(template.suffix) if template.suffix_as_eos else quoted(template.suffix) + "{{ eos_token }}"
    return (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        + quoted(system_before)
        + content
        + quoted(system_after)
        + "{% elif message['role'] == 'user' %}"
        + quoted(before)
        + content
        + quoted(after)
        + "{% else %}"
        + content
        + end
        + quoted(template.sep)
        + "{% endif %}{% endfor %}"
    )
