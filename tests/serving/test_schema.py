"""What a request may say, and what becomes of it."""

from typing import Any

from pallava.serving.schema import ChatCompletionRequest


def read(*messages: Any, **more: Any) -> ChatCompletionRequest:
    """A request with messages of pairs of role and content, or with one question."""
    turns = [{"role": role, "content": content} for role, content in messages or [("user", "what ?")]]
    return ChatCompletionRequest.model_validate({"messages": turns, **more})


def test_words_are_drawn_from_all(parts: Any) -> None:
    """transformers draws from the 50 likeliest by default."""
    assert read(temperature=1).options() == {"do_sample": True, "temperature": 1, "top_p": 1, "top_k": 0}
    assert parts[0].generation_config.top_k == 50
