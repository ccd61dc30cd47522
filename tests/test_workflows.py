"""The workflows of continuous integration: valid, and of commands, extras and files that exist."""

import ast
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pallava.cli import COMMANDS
from tests.test_systems import FOR_TRAINING, POSIX_MODULES, PROJECT, imported, run_at_import

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs() -> dict[str, dict[str, Any]]:
    return {f"{path.stem} {name}": job for path in WORKFLOWS for name, job in load(path)["jobs"].items()}


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_starts_by_itself_and_may_only_read(path: Path) -> None:
    workflow = load(path)
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads `on` so
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", jobs())
def test_the_steps_of_a_job_are_known(name: str) -> None:
    job = jobs()[name]
    assert job["timeout-minutes"] <= 60
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/(checkout|setup-python)@v\d+", step["uses"])
            continue
        words = shlex.split(step["run"])
        for word in words:
            for extra in re.findall(r"[\w-]+", (re.search(r"\[(.*)\]", word) or ["", ""])[1]):
                assert extra in PROJECT["optional-dependencies"]
            if "/" in word:
                path = ROOT / word.strip("$()")
                assert path.is_file()
                assert path.suffix or os.access(path, os.X_OK)
        if words[0] == "pallava":
            assert words[1] in {"--version", *(command.split()[0] for command in COMMANDS)}


def test_each_system_is_tested() -> None:
    systems = [job["runs-on"] for job in jobs().values()]
    systems += [each for job in jobs().values() for each in job.get("strategy", {}).get("matrix", {}).get("os", ())]
    assert {each.split("-")[0] for each in systems if not each.startswith("$")} == {"ubuntu", "macos", "windows"}


def test_versions_of_python_are_supported() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    versions = set(re.findall(r'"(3\.\d+)"', text))
    assert versions <= {f"3.{minor}" for minor in (10, 11, 12)}
    assert PROJECT["requires-python"] == ">=3.10,<3.13"


def test_the_portable_tests_exist_and_need_no_xtuner() -> None:
    paths = (ROOT / "tests" / "portable.txt").read_text(encoding="utf-8").split()
    assert paths == sorted(set(paths))
    assert len(paths) > 60
    for path in paths:
        for node in run_at_import(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            assert not {name.split(".")[0] for name in imported(node)} & (FOR_TRAINING | POSIX_MODULES), path
            assert not any(name.startswith(("pallava.training", "tests.training")) for name in imported(node)), path
