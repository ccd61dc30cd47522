"""What the API takes: OpenAI's chat completions, as far as a PA-LLaVA can answer them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pallava.io.texts import find_damage

_MAX_TEXT, _MAX_NAME, _MAX_STOP = 1 << 18, 1000, 64  # characters
_MAX_MESSAGES, _MAX_PARTS, _MAX_STOPS = 256, 64, 4
_MAX_SEED = 2**63
_LEAST_TEMPERATURE = 1e-3  # below it logits overflow, and nothing but the likeliest word would be drawn
_REFUSED = (
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "presence_penalty",
    "response_format", "tool_choice", "tools", "top_logprobs",
)  # fmt: skip
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP)]


class _Part(BaseModel):
    @field_validator("*", mode="after")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, str) and (damage := find_damage(value.replace("\0", ""))):
            raise ValueError(f"must be UTF-8 text: {damage}")
        return value


class TextPart(_Part):
    """A piece of text."""

    type: Literal["text"]
    text: _Text


class ImageURL(_Part):
    """Where an image is."""

    url: str = Field(description="`data:` URL, or the URL of a host that `--allow-url` names")


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(_Part):
    """One message of a conversation; images are the user's."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        _Text
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
            Field(min_length=1, max_length=_MAX_PARTS),
        ]
    )


class StreamOptions(_Part):
    """Options of an answer that comes in pieces."""

    include_usage: bool = Field(False, description="whether the last piece has the numbers of tokens")


class ChatCompletionRequest(_Part):
    """A conversation that ends with a question, and how to answer it."""

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    model: str | None = Field(None, max_length=_MAX_NAME, description="name of the model, as `/v1/models` gives it")
    max_tokens: int | None = Field(None, ge=1, description="largest number of tokens of the answer")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same by its newer name")
    temperature: float | None = Field(None, ge=0, le=2, description="0 (default), and all below 0.001, takes the likeliest words")
    top_p: float | None = Field(None, gt=0, le=1, description="share of the likeliest words that are drawn from")
    seed: int | None = Field(None, ge=-_MAX_SEED, lt=_MAX_SEED, description="seed of drawn words")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = Field(
        None, description="texts that end the answer"
    )
    stream: bool | None = Field(None, description="whether the answer comes in pieces, as server-sent events")
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(None, description="number of answers")

    @model_validator(mode="after")
    def _refuse(self) -> "ChatCompletionRequest":
        given = {name: value for name, value in (self.model_extra or {}).items() if name in _REFUSED and value}
        if given and given != {"response_format": {"type": "text"}}:
            raise ValueError(f"a PA-LLaVA cannot use {', '.join(sorted(given))}; leave it out")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """Return the largest number of tokens, by either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Return the texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def image_urls(self) -> list[ImageURL]:
        """Return all images in reading order."""
        contents = [message.content for message in self.messages if not isinstance(message.content, str)]
        return [part.image_url for content in contents for part in content if isinstance(part, ImagePart)]

    def to_messages(self) -> list[dict[str, Any]]:
        """Return the conversation in Hugging Face's form, with markers in the place of images."""
        messages = []
        for message in self.messages:
            content: Any = message.content
            if not isinstance(content, str):
                content = [{"type": "image"} if isinstance(part, ImagePart) else part.model_dump() for part in content]
            messages.append({"role": message.role.replace("developer", "system"), "content": content})
        return messages

    def options(self) -> dict[str, Any]:
        """Return how words are drawn, as options of `ChatModel.reply`; none if the likeliest are taken."""
        if (self.temperature or 0) < _LEAST_TEMPERATURE:
            return {}
        # transformers would draw from the 50 likeliest words by itself.
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": 0}
        return drawn if self.seed is None else {**drawn, "seed": self.seed}


class ReadingRequest(_Part):
    """An image whose reading is asked for."""

    image: ImageURL


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody
