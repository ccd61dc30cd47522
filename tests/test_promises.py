"""Every command that the README or a help text shows is one that the parsers take."""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pallava.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
SHOWN = re.compile(r"^\s+(?:[A-Z_]+=\S+ )*(pallava .*|python tools/.*)$")


def shown(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        if match := SHOWN.match(re.split(r"\s{2,}[#(]", line)[0]):
            yield from match[1].strip().split(" && ")


def examples() -> Iterator[str]:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        yield from shown(page.read_text(encoding="utf-8"))
    for module, _ in COMMANDS.values():
        text = importlib.import_module(module).__doc__ or ""
        yield from (line for line in shown(text) if "COMMAND" not in line)


EXAMPLES = sorted(set(examples()))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20
    assert any(line.startswith("python tools/dataformat.py") for line in EXAMPLES)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    if words[0] == "python":
        spec = importlib.util.spec_from_file_location("dataformat", ROOT / words[1])
        assert spec is not None
        assert spec.loader is not None
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        assert tool.make_parser().parse_args(words[2:])
        return
    for module, _ in COMMANDS.values():
        monkeypatch.setattr(importlib.import_module(module), "run", lambda options: 0)
    assert main(words[1:]) == 0
