"""What a request may say, and what becomes of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from pallava.serving.schema import ChatCompletionRequest


def read(*messages: Any, **more: Any) -> ChatCompletionRequest:
    """A request with messages of pairs of role and content, or with one question."""
    turns = [{"role": role, "content": content} for role, content in messages or [("user", "what ?")]]
    return ChatCompletionRequest.model_validate({"messages": turns, **more})


def test_words_are_drawn_from_all(parts: Any) -> None:
    """transformers draws from the 50 likeliest by default."""
    assert read(temperature=1).options() == {"do_sample": True, "temperature": 1, "top_p": 1, "top_k": 0}
    assert parts[0].generation_config.top_k == 50


@pytest.mark.parametrize(
    ("name", "value"),
    [("modalities", ["audio"]), ("best_of", 5), ("prediction", {"type": "content"}), ("top_k", 5),
     ("repetition_penalty", 2), ("temprature", 1), ("tool_choice", "required"), ("n", 2)],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="n" if name == "n" else f"'{name}'"):
        read(**{name: value})


def test_what_changes_nothing_is_taken() -> None:
    read(
        tool_choice="none",
        modalities=["text"],
        response_format={"type": "text"},
        logprobs=False,
        tools=[],
        logit_bias={},
    )
    read(user="a", metadata={"a": "b"}, store=True, service_tier="auto", parallel_tool_calls=True)
    image = {"type": "image_url", "image_url": {"url": "data:,", "detail": "high"}}
    question = {"type": "text", "text": "a"}
    message = {"role": "user", "content": [image, question], "name": "Ann", "refusal": None}
    given = ChatCompletionRequest.model_validate(
        {"messages": [message], "stream_options": {"include_obfuscation": True}}
    )
    assert given.to_messages() == [{"role": "user", "content": [{"type": "image"}, question]}]


@pytest.mark.parametrize("what", ["image", "image_url", "text", "message", "stream_options"])
def test_what_would_be_ignored_deeper_is_refused(what: str) -> None:
    of = {"image_url": {"url": "data:,"}, "text": {"type": "text", "text": "a"}, "stream_options": {}}
    of["image"] = {"type": "image_url", "image_url": of["image_url"]}
    of["message"] = {"role": "user", "content": [of["image"], of["text"]]}
    of[what]["wieght"] = 2
    with pytest.raises(ValidationError, match="'wieght'"):
        ChatCompletionRequest.model_validate({"messages": [of["message"]], "stream_options": of["stream_options"]})


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        ("user system user", "messages.1"),
        ("user assistant developer user", "messages.2"),
        ("system", "question"),
        ("user assistant", "'assistant'"),
        ("assistant user", "'user'"),
        ("system assistant user", "'user'"),
        ("system system user", "'user'"),
    ],
)
def test_an_order_of_roles_that_cannot_be_followed(roles: str, named: str) -> None:
    with pytest.raises(ValidationError, match=named) as found:
        read(*[(role, "a") for role in roles.split()])
    assert "gpt" not in str(found.value)
    read(("developer", "a"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))


def test_images_are_the_users() -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    for role, place in (("assistant", 1), ("system", 0)):
        messages = [("user", "a"), (role, image), ("user", "b")]
        with pytest.raises(ValidationError, match=f"messages.{place}.*'{role}'"):
            read(*messages[1 - place :])
    question = [*image * 2, {"type": "text", "text": "b"}]
    assert len(read(("user", image), ("assistant", "a"), ("user", question)).image_urls()) == 3


def test_content_that_is_none() -> None:
    with pytest.raises(ValidationError, match="text") as found:
        read(("user", "a"), ("assistant", None), ("user", "b"))
    assert [each["loc"] for each in found.value.errors()] == [("messages", 1, "content")]
