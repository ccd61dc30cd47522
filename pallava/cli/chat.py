"""The commands that answer questions: `chat` in the terminal, `serve` over an API and on a page."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pallava.cli.options import LoadIn4bit, TrustRemoteCode, add_parameters
from pallava.errors import PallavaError, check_at_least


def run_chat(
    model: Annotated[str, "model folder that `pallava convert` wrote"],
    image: Annotated[Sequence[str], "image file to ask about (repeatable)"] = (),
    question: Annotated[Sequence[str], "question; several make a conversation (repeatable)"] = (),
    as_json: Annotated[bool, "each answer as a line of JSON, with its probability", "--json"] = False,
    max_new_tokens: Annotated[int, "maximum tokens of an answer"] = 256,
    base_llm: Annotated[
        str | None, "base language model of a folder with an adapter (default: the one it was trained on)"
    ] = None,
    load_in_4bit: LoadIn4bit = False,
    trust_remote_code: TrustRemoteCode = False,
    device: Annotated[str, "device: auto, cpu, cuda or cuda:N"] = "auto",
) -> None:
    """Ask a model folder about an image; for research only, not for diagnosis."""
    from pallava.images import open_image
    from pallava.model import load
    from pallava.serving.session import Session

    check_at_least(1, max_new_tokens=max_new_tokens)
    if not all(map(str.strip, question)):
        raise PallavaError("--question must not be empty; leave it out to type questions")
    if as_json and not question:
        raise PallavaError("--json needs a --question")
    images = [open_image(path) for path in image]  # before the model, which takes its time
    parts = load(model, device, base_llm=base_llm, trust_remote_code=trust_remote_code, load_in_4bit=load_in_4bit)
    session = Session(*parts, images, names=image)
    if not question:
        from pallava.cli.terminal import Terminal
        from pallava.serving.record import describe_model

        facts = {**describe_model(parts[0]), "settings": f"greedy, at most {max_new_tokens} tokens an answer"}
        Terminal(session, Path(model).resolve().name, facts, max_new_tokens).run()
    for text in question:
        reply = session.reply(text, max_new_tokens=max_new_tokens)
        print(json.dumps({"question": text, **reply.to_dict()}) if as_json else reply.text, flush=True)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of `ServeOptions`."""
    from pallava.serving.options import ServeOptions

    parser.add_argument("model", help="model folder that `pallava convert` wrote")
    add_parameters(parser, ServeOptions)


def run_serve(model: str, **options: Any) -> None:
    """Serve a model folder on this machine: a page, and OpenAI's API; for research only, not for diagnosis."""
    try:
        from pallava.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "prometheus_client", "uvicorn"):
            raise
        raise PallavaError(
            f"serving needs {error.name}, which is not installed; run `pip install fastapi prometheus-client uvicorn`"
        ) from None
    serve(model, log=partial(print, flush=True), **options)
