"""A conversation on paper: what was asked and answered, by which model, when, and what for."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pallava import __version__
from pallava.model import PALLaVAForConditionalGeneration
from pallava.serving.replies import Reply
from pallava.serving.session import Turn

NOTICE = "For research only, not for diagnosis."


def describe_model(model: PALLaVAForConditionalGeneration) -> dict[str, str]:
    """Return what a conversation's record says of its model: the language model's name, and versions of packages."""
    config = model.config
    llm = Path(config.base_llm or config.text_config.name_or_path).name  # not where it is
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"language model": llm or config.text_config.model_type, "pallava": __version__, **versions}


def describe_probability(reply: Reply) -> str:
    """Return how probable a reply was, and what that means."""
    shares = [f"{name} {share:.1%}" for name, share in reply.choices.items()]
    if not shares and reply.probability is not None:
        shares = [f"{reply.probability:.1%}"]
    return ": ".join([reply.meaning, ", ".join(shares)]) if shares else reply.meaning


def to_markdown(name: str, turns: Sequence[Turn], facts: Mapping[str, Any]) -> str:
    """Return a conversation with the model of a name as Markdown; facts are settings, and those of `describe_model`."""
    lines = [f"# Conversation with {name}", "", NOTICE, ""]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    lines += [f"- {key}: {value}" for key, value in {"date": now, "model": name, **facts}.items()]
    for turn in turns:
        lines += ["", f"**Question:** {turn.question}", ""]
        if turn.pictures:
            lines += [f"Pictures: {', '.join(turn.pictures)}", ""]
        lines += [f"**Answer:** {turn.reply.text}", "", describe_probability(turn.reply)]
    return "\n".join(lines) + "\n"
