"""Every command that the README, a help text or a config shows is one that the parsers take."""

import ast
import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pallava.cli import COMMANDS, load_command, main
from pallava.config_files import configs_dir

ROOT = Path(__file__).parents[1]
VARIABLES = r"(?:[A-Z_]+=(?:<[^>]*>|\S+)\s+)*"
SHOWN = re.compile(rf"^\s+{VARIABLES}(pallava .*|python tools/.*|xtuner train .*)$")
LAUNCH = re.compile(rf"^\s+[\w ]+?\s\s+(?:srun .*?)?{VARIABLES}(xtuner train .*)$", re.MULTILINE)  # behind a label


def shown(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        if match := SHOWN.match(re.split(r"\s{2,}[#(]", line)[0]):
            yield from match[1].strip().split(" && ")


def examples() -> Iterator[str]:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        yield from shown(page.read_text(encoding="utf-8"))
    for config in configs_dir().rglob("pallava_*.py"):
        text = (ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or "").replace("\\\n", " ")
        yield from (match[1] for match in LAUNCH.finditer(re.sub(" +xtuner", " xtuner", text)))
        yield from shown(textwrap.indent(text, " "))
    for name in COMMANDS:
        yield from (line for line in shown(load_command(name)[2]) if "COMMAND" not in line)


EXAMPLES = sorted(set(examples()))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20
    assert any(line.startswith("python tools/dataformat.py") for line in EXAMPLES)
    assert sum("xtuner train" in line for line in EXAMPLES) >= 4
    assert any("--launcher slurm" in line for line in EXAMPLES)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(re.sub(r"^xtuner", "pallava", line))  # which takes the same arguments
    if words[0] == "python":
        spec = importlib.util.spec_from_file_location("dataformat", ROOT / words[1])
        assert spec is not None
        assert spec.loader is not None
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        assert tool.make_parser().parse_args(words[2:])
        return
    monkeypatch.setattr("pallava.cli.load_command", lambda name: (load_command(name)[0], lambda **options: 0, ""))
    assert main(words[1:]) == 0
