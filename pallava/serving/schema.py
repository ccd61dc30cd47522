"""What the API takes: OpenAI's chat completions, as far as a PA-LLaVA can answer them."""

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pallava.io.texts import find_damage

_MAX_TEXT, _MAX_NAME, _MAX_STOP = 1 << 18, 1000, 64  # characters
_MAX_MESSAGES, _MAX_PARTS, _MAX_STOPS = 256, 64, 4
_MAX_SEED = 2**63
_LEAST_TEMPERATURE = 1e-3  # below it logits overflow, and sampling would be greedy anyway
# Values by which OpenAI's other fields change nothing; what is false or empty changes nothing in any field.
_NEUTRAL: dict[str, list[Any]] = {
    "modalities": [["text"]],
    "response_format": [{"type": "text"}],
    "tool_choice": ["none", "auto"],
}
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")

    unused: ClassVar[frozenset[str]] = frozenset()  # fields that change no answer

    @model_validator(mode="after")
    def _refuse_others(self) -> "_Part":
        """Refuse what would be ignored: a field that a PA-LLaVA cannot follow, or a misspelt one."""
        for name, value in (self.model_extra or {}).items():
            if value and name not in self.unused and value not in _NEUTRAL.get(name, []):
                near = get_close_matches(name, type(self).model_fields, 1, cutoff=0.85)
                advice = f"did you mean '{near[0]}'?" if near else "leave it out"
                raise ValueError(f"a PA-LLaVA cannot use '{name}'; {advice}")
        return self

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

    unused: ClassVar = frozenset({"detail"})

    url: str = Field(description="`data:` URL, or the URL of a host that `--allow-url` names")


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(_Part):
    """One message of a conversation; images are the user's."""

    unused: ClassVar = frozenset({"name"})

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        _Text
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
            Field(min_length=1, max_length=_MAX_PARTS),
        ]
    )

    @field_validator("content", mode="before")
    @classmethod
    def _check_content(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("must be a text or a list of parts")
        return value

    @property
    def text(self) -> str:
        """Return its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[ImageURL]:
        """Return its images."""
        return [part.image_url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(_Part):
    """Options of an answer that comes in pieces."""

    unused: ClassVar = frozenset({"include_obfuscation"})

    include_usage: bool = Field(False, description="whether the last piece has the numbers of tokens")


class ChatCompletionRequest(_Part):
    """A conversation that ends with a question, and how to answer it."""

    unused: ClassVar = frozenset(
        ("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    model: str | None = Field(None, max_length=_MAX_NAME, description="name of the model, as `/v1/models` gives it")
    max_tokens: int | None = Field(None, ge=1, description="largest number of tokens of the answer")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same by its newer name")
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (default), and all below 0.001, decodes greedily"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="probability mass that is sampled from (nucleus sampling)"
    )
    seed: int | None = Field(None, ge=-_MAX_SEED, lt=_MAX_SEED, description="seed for sampling")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = Field(
        None, description="texts that end the answer"
    )
    stream: bool | None = Field(None, description="whether the answer comes in pieces, as server-sent events")
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(None, description="number of answers")

    @model_validator(mode="after")
    def _check_roles(self) -> "ChatCompletionRequest":
        roles = [message.role.replace("developer", "system") for message in self.messages]
        if roles[-1] != "user":
            raise ValueError(f"the last message must be a question from 'user', got one from '{roles[-1]}'")
        if not self.messages[-1].text.strip():
            raise ValueError("the last message must have a question, got no text")
        if roles[roles[0] == "system"] != "user":
            raise ValueError("the first message, or that after one from 'system', must be from 'user'")
        for place, message in enumerate(self.messages):
            if place and roles[place] == "system":
                raise ValueError(f"only the first message may be from 'system', got messages.{place}")
            if roles[place] != "user" and message.images:
                raise ValueError(f"messages.{place} is from '{message.role}' and must be text; images are the user's")
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
        return [image for message in self.messages for image in message.images]

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
        """Return the sampling options of `ChatModel.reply`; none for greedy decoding."""
        if (self.temperature or 0) < _LEAST_TEMPERATURE:
            return {}
        # By default transformers samples from the 50 most probable tokens alone.
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
