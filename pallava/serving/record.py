"""A conversation on paper: what was asked and answered, by which model, when, and what for."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pallava import __version__
from pallava.model import PALLaVAForConditionalGeneration
from pallava.serving.replies import Reply
from pallava.serving.session import Exchange

NOTICE = "For research only, not for diagnosis."


def describe_model(model: PALLaVAForConditionalGeneration) -> dict[str, str]:
    """Return what a conversation's record says of its model: the language model's name, and versions of packages."""
    config = model.config
    llm = Path(config.base_llm or config.text_config.name_or_path).name  # not where it is
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"language model": llm or config.text_config.model_type, "pallava": __version__, **versions}


def describe_reply(reply: Reply) -> str:
    """Return whether a reply was cut, how probable it was, and what that means."""
    cut = {"length": "cut at its largest length; ", "cancelled": "stopped; "}.get(reply.finish_reason, "")
    shares = [f"{name} {share:.1%}" for name, share in reply.choices.items()]
    if not shares and reply.probability is not None:
        shares = [f"{reply.probability:.1%}"]
    return cut + (": ".join([reply.meaning, ", ".join(shares)]) if shares else reply.meaning)


def to_markdown(name: str, exchanges: Sequence[Exchange], facts: Mapping[str, Any]) -> str:
    """Return a conversation with the model of a name as Markdown; facts are settings, and those of `describe_model`.

    Names, questions and answers are shown as they are: none of them is read as Markdown. The page writes the same.
    """
    lines = [f"# Conversation with {_escape(name)}", "", NOTICE, ""]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    lines += [f"- {key}: {_escape(value)}" for key, value in {"date": now, "model": name, **facts}.items()]
    for exchange in exchanges:
        lines += ["", "**Question:**", "", _fence(exchange.question), ""]
        if exchange.pictures:
            lines += [f"Pictures: {', '.join(map(_escape, exchange.pictures))}", ""]
        lines += ["**Answer:**", "", _fence(exchange.reply.text), "", _escape(describe_reply(exchange.reply))]
    text = "\n".join(lines) + "\n"
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # names of files may not be UTF-8


def _escape(text: Any) -> str:
    """Return a text as one line of Markdown that shows it."""
    return re.sub(r"[\\`*_\[\]<>!#&~|]", r"\\\g<0>", re.sub(r"[\x00-\x1f\x7f]", " ", str(text)))


def _fence(text: str) -> str:
    """Return a text as a block of Markdown that shows it and that nothing in it ends."""
    marks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{marks}\n{text}\n{marks}"
