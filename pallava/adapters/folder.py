"""A model folder that answers conversations, a batch at a time: what every adapter asks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pallava.devices import find_device
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor

Message = Mapping[str, Any]
"""As Hugging Face has it: `role`, and `content` of parts, each a text or an image."""


class ModelFolder:
    """A model with its processor.

    Args:
        folder: What ``pallava convert`` wrote.
        base_llm: Where the base language model lies, if not where it was when the folder was written.
        device: "auto" is this process's GPU if there is one.

    Raises:
        PallavaError: There is no model, or no such device.
    """

    def __init__(self, folder: str, *, base_llm: str | None = None, device: str = "auto") -> None:
        self.device = torch.device(find_device(device, int(os.environ.get("LOCAL_RANK", 0))))
        model = PALLaVAForConditionalGeneration.from_pretrained(folder, base_llm=base_llm)
        self.model = model.to(self.device).eval()
        self.processor = PALLaVAProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[str]:
        """Answers each conversation, which ends with a question.

        Args:
            conversations: As `PALLaVAProcessor.apply_chat_template` takes them.
            **options: Of transformers' `generate`; greedy without any.
        """
        inputs = self.processor.apply_chat_template(conversations, tokenize=True, return_dict=True)
        return self.processor.batch_decode(self.model.generate(**inputs, **options))
