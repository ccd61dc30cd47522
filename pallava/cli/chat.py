"""Ask a model folder about an image; for research only, not for diagnosis.

Example:
  pallava chat demo/model --image slide.png --question "Is necrosis present?"
  pallava chat demo/model --image slide.png         (asks for questions until an empty line)
"""

import argparse
import sys
from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="model folder that `pallava convert` wrote")
    parser.add_argument("--image", action="append", default=[], help="image file to ask about (repeatable)")
    parser.add_argument("--question", action="append", help="question; several make a conversation (repeatable)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="maximum tokens of an answer (default: 256)")
    parser.add_argument(
        "--base-llm", help="base language model of a folder with an adapter (default: the one it was trained on)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="permission to import the module of a connector that does not come with pallava (default: refuse)",
    )
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda or cuda:N (default: auto)")


def run(options: argparse.Namespace) -> int:
    """Answer each question."""
    from pallava.images import open_image
    from pallava.model import ask, load

    images = [open_image(path) for path in options.image]  # before the model, which takes its time
    model, processor = load(
        options.model, options.device, base_llm=options.base_llm, trust_remote_code=options.trust_remote_code
    )
    history: list[tuple[str, str]] = []
    for question in options.question or _typed_questions():
        answer = ask(model, processor, images, question, history=history, max_new_tokens=options.max_new_tokens)
        history.append((question, answer))
        print(answer, flush=True)
    return 0


def _typed_questions() -> Iterator[str]:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
