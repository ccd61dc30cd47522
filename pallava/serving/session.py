"""One conversation with a model: images, questions and answers, of which nothing is computed twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pallava.image_sources import name_of
from pallava.model import Image, PALLaVAForConditionalGeneration, PALLaVAProcessor, list_images
from pallava.serving.chat_model import ChatModel
from pallava.serving.replies import Picture, Reply


@dataclass(frozen=True)
class Exchange:
    """A question with its answer."""

    question: str
    pictures: tuple[str, ...]  # names of the images that it brought
    reply: Reply


class Session:
    """A conversation. Each image is encoded once; keys and values of earlier turns are kept.

    Answers are those of `pallava.ask` with the same images and history.

    Args:
        model: The first that `pallava.load` returns.
        processor: The second.
        images: Images of the first question, as in `show`.
        names: Their names.
    """

    def __init__(
        self,
        model: PALLaVAForConditionalGeneration,
        processor: PALLaVAProcessor,
        images: Image | Sequence[Image] | None = None,
        *,
        names: Sequence[str] = (),
    ) -> None:
        self._chat = ChatModel(model, processor)
        self.turns: list[Exchange] = []
        self._pictures: list[Picture] = []
        self._new: list[str] = []  # names of those that the next question brings
        self.show(images, names)

    def show(self, images: Image | Sequence[Image] | None, names: Sequence[str] = ()) -> None:
        """Add an image, in any form that `pallava.open_image` takes, or a list of them, to the next question.

        Their names stand in the record of the conversation; by default it has their paths.

        Raises:
            PallavaError: An image cannot be opened.
        """
        images = list_images(images)
        self._pictures += [self._chat.see(image) for image in images]
        self._new += names or [name_of(image) for image in images]

    def clear(self) -> None:
        """Begin a new conversation, without images."""
        self.turns, self._pictures, self._new = [], [], []

    def ask(self, question: str, **options: Any) -> str:
        """Answer the next question; the arguments are those of `reply`."""
        return self.reply(question, **options).text

    def reply(
        self,
        question: str,
        *,
        max_new_tokens: int = 256,
        on_text: Callable[[str], Any] = lambda text: None,
        is_cancelled: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Reply:
        """Answer the next question; greedily by default.

        A question that fails is not part of the conversation.

        Args:
            question: Text without ``<image>``.
            max_new_tokens: Largest number of tokens of the answer.
            on_text: Called with each piece of the answer as it comes.
            is_cancelled: Asked at each token; once true, the answer ends there.
            **options: Options of transformers' `generate`, such as ``do_sample``.

        Raises:
            PallavaError: The conversation is too long, or the device has too little memory.
        """
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "on_text": on_text, "is_cancelled": is_cancelled}
        request = self._chat.request([*self.messages, _ask(question, len(self._new))], self._pictures, **how)
        reply = self._chat.reply([request], **options)[0]
        self.turns.append(Exchange(question, tuple(self._new), reply))
        self._new = []
        return reply

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation so far in Hugging Face's form, with a marker for each image."""
        return [
            message
            for turn in self.turns
            for message in (_ask(turn.question, len(turn.pictures)), {"role": "assistant", "content": turn.reply.text})
        ]


def _ask(question: str, num_images: int) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]}
