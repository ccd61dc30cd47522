"""The rules of the project's English that a program can check: helps, errors and docstrings."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pallava.cli import COMMANDS, load_command

PACKAGE = Path(__file__).parents[1] / "pallava"
NOT_A_NOUN = re.compile(r"(of|where|what|without|which|as|if)\b", re.IGNORECASE)
FOREIGN = re.compile(
    r"\b(is|are|holds|gives) no\b|\bthere (is|are|was)\b|\btold\b|\btells?\b|\b(go|goes|went|gone) on\b|\blies?\b|"
    r"\bcomes? out\b|\bsound\b",
    re.IGNORECASE,
)


def actions() -> Iterator[tuple[str, argparse.Action]]:
    for name in COMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        load_command(name)[0](parser)
        yield from ((name, action) for action in parser._actions)


def error_messages() -> Iterator[tuple[str, str]]:
    """Every literal message of a `PallavaError` or a subclass, its values written as X, with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "report_os_errors":
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text_of(node.args[0])
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            name = node.exc.func.id if isinstance(node.exc.func, ast.Name) else ""
            message = text_of(node.exc.args[0])
            if name.endswith("Error") and name not in ("AttributeError", "KeyError", "OSError") and message:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", message


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "X" for value in node.values)
    return ""


ACTIONS = list(actions())
ERRORS = list(error_messages())


def test_there_is_enough_to_check() -> None:
    assert len(ACTIONS) > 80
    assert len(ERRORS) > 200


@pytest.mark.parametrize(("command", "action"), ACTIONS, ids=lambda value: getattr(value, "dest", value))
def test_a_help_text(command: str, action: argparse.Action) -> None:
    assert action.help, "needs a help text"
    assert not NOT_A_NOUN.match(action.help)
    assert not action.help.endswith(".")
    assert not FOREIGN.search(action.help)
    assert "default" not in action.help or "(default: " in action.help
    repeated = isinstance(action, argparse._AppendAction)
    assert repeated == ("(repeatable)" in action.help)
    assert not re.search("several times|repeated", action.help)


def test_error_messages() -> None:
    wrong = {
        f"{place}: {message}"
        for place, message in ERRORS
        if message.rstrip().endswith(".") or re.match("[A-Z][a-z]", message) or FOREIGN.search(message)
    }
    assert not wrong, f"{len(wrong)}\n" + "\n".join(sorted(wrong))


def test_docstrings() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                first = text.splitlines()[0]
                if re.match(r"(Gives|Puts|Tells|Takes none|Makes|Says)\b", first) or FOREIGN.search(first):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {first}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong)
