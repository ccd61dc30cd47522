"""One conversation with a model: images, questions and answers, of which nothing is computed twice."""

from collections.abc import Callable, Sequence
from typing import Any

from pallava.model import Image, PALLaVAForConditionalGeneration, PALLaVAProcessor, list_images
from pallava.serving.chat_model import ChatModel
from pallava.serving.replies import Picture, Reply


class Session:
    """A conversation. Each image is encoded once; keys and values of earlier turns are kept.

    Answers are those of `pallava.ask` with the same images and history.

    Args:
        model: The first that `pallava.load` returns.
        processor: The second.
        images: Images of the first question, as in `show`.
    """

    def __init__(
        self,
        model: PALLaVAForConditionalGeneration,
        processor: PALLaVAProcessor,
        images: Image | Sequence[Image] | None = None,
    ) -> None:
        self._chat = ChatModel(model, processor)
        self.messages: list[dict[str, Any]] = []
        self._pictures: list[Picture] = []
        self._num_new = 0
        self.show(images)

    def show(self, images: Image | Sequence[Image] | None) -> None:
        """Add an image, in any form that `pallava.open_image` takes, or a list of them, to the next question.

        Raises:
            PallavaError: An image cannot be opened.
        """
        pictures = [self._chat.see(image) for image in list_images(images)]
        self._pictures += pictures
        self._num_new += len(pictures)

    def clear(self) -> None:
        """Begin a new conversation, without images."""
        self.messages, self._pictures, self._num_new = [], [], 0

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
        parts = [*[{"type": "image"}] * self._num_new, {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": parts}]
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "on_text": on_text, "is_cancelled": is_cancelled}
        request = self._chat.request(messages, self._pictures, **how)
        reply = self._chat.reply([request], **options)[0]
        self.messages, self._num_new = [*messages, {"role": "assistant", "content": reply.text}], 0
        return reply
