"""Other systems: what is installed there, what modules import and open, and what a training says."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.model.versions import check_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_TRAINING = {"xtuner", "mmengine", "deepspeed", "tensorboard"}
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "posix", "curses"}
POSIX_NAMES = {
    "os": ["fork", "getpgid", "getuid", "killpg", "mkfifo", "sched_getaffinity", "setsid", "sync", "uname"],
    "signal": ["SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"],
}
POSIX_ATTRIBUTES = {f"{module}.{name}" for module, names in POSIX_NAMES.items() for name in names}
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("pallava", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def required(system: str) -> dict[str, Requirement]:
    lines = map(Requirement, PROJECT["dependencies"])
    return {each.name: each for each in lines if not each.marker or each.marker.evaluate({"sys_platform": system})}


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_what_training_needs_is_required_on_linux_alone(system: str) -> None:
    linux, there = required("linux"), required(system)
    assert linux.keys() >= FOR_TRAINING
    assert there.keys() == linux.keys() - FOR_TRAINING - {"setuptools"}
    assert not there["open_clip_torch"].extras
    assert str(linux["transformers"].specifier) == "==4.48.0"


def test_the_documents_name_what_is_installed_beside_another_transformers() -> None:
    text = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = (words for words in text.splitlines() if words.startswith("    pip install accelerate "))
    named = {Requirement(word).name for word in shlex.split(line)[2:]}
    assert required("darwin").keys() - named == {"torch", "transformers", "numpy", "pillow", "safetensors", "tqdm"}
    assert named <= required("darwin").keys()


def test_other_systems_get_a_transformers_that_opens_folders() -> None:
    specifier = required("win32")["transformers"].specifier
    for version in [(4, minor) for minor in range(40, 57)] + [(5, minor) for minor in range(25)]:
        is_opening = True
        try:
            check_version(version)
        except PallavaError:
            is_opening = False
        assert specifier.contains(f"{version[0]}.{version[1]}.0") == is_opening


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a module but what its functions do when they are called."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from run_at_import(node)


def imported(node: ast.AST) -> set[str]:
    """Names of the modules that a statement may import."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


def test_no_module_needs_posix_to_be_imported() -> None:
    for path, tree in TREES.items():
        for node in run_at_import(tree):
            assert not imported(node) & (POSIX_MODULES | POSIX_ATTRIBUTES), path
            assert not isinstance(node, ast.Attribute) or ast.unparse(node) not in POSIX_ATTRIBUTES, path


def test_text_is_in_utf_8_on_every_system() -> None:
    """Windows takes another encoding where none is named."""
    for path, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).split(".")[-1]
            modes = [str(each.value) for each in call.args if isinstance(each, ast.Constant)]
            is_text = name == "open" and any(re.fullmatch("[rwax]", mode) for mode in modes)
            is_text |= name == "read_text" and isinstance(call.func, ast.Attribute)
            assert not is_text or "encoding" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("words", [["train", "pallava_domain_alignment"], ["demo"], ["doctor", "xtuner_config.py"]])
def test_a_training_says_what_it_needs(
    words: list[str], system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xtuner_config.py").touch()
    monkeypatch.setattr("pallava.config_files._xtuner_folders", lambda: iter(()))
    monkeypatch.setattr("pallava.config_files.sys", SimpleNamespace(platform=system))
    monkeypatch.setattr("pallava.config_files.platform.system", lambda: system)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "training needs " + {"linux": "xtuner", "darwin": "Linux, got darwin"}[system] in line
