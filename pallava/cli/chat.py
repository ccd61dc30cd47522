"""Asks a model folder about an image; for research only, not for diagnosis.

Example:
  pallava chat demo/model --image slide.png --question "Is necrosis present?"
  pallava chat demo/model --image slide.png         (asks again and again, until an empty line)
"""

import argparse
import sys
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="folder that `pallava convert` wrote")
    parser.add_argument("--image", action="append", default=[], help="an image; may be given several times")
    parser.add_argument("--question", action="append", help="a question; several make a conversation")
    parser.add_argument("--system", help="a system message before the first question")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length of an answer (%(default)s)")
    parser.add_argument("--base-llm", help="where the base language model lies, if the folder holds an adapter to it")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, ... (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Answers each question."""
    import torch

    from pallava.images import open_image
    from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor

    images = [open_image(path) for path in options.image]  # before the model, which takes its time
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model = PALLaVAForConditionalGeneration.from_pretrained(options.model, base_llm=options.base_llm).to(device)
    processor = PALLaVAProcessor.from_pretrained(options.model)
    conversation: list[dict[str, str]] = []
    for question in _questions(options.question):
        markers = "<image>" * len(images) if not conversation and "<image>" not in question else ""
        conversation.append({"from": "human", "value": markers + question})
        answer = _answer(model, processor, conversation, images, options)
        conversation.append({"from": "gpt", "value": answer})
        print(answer, flush=True)
    return 0


def _questions(given: list[str] | None) -> Any:
    if given is not None:
        yield from given
        return
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _answer(model: Any, processor: Any, conversation: list[Any], images: list[Any], options: Any) -> str:
    inputs = processor(conversation, images=images or None, system=options.system)
    return processor.batch_decode(model.generate(**inputs, max_new_tokens=options.max_new_tokens))[0]
