"""Who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pallava"
EVERYBODY = {"errors"}
MAY_IMPORT = {
    "errors": set(),
    "images": set(),
    "devices": set(),
    "tiling": {"images"},
    "prompts": set(),
    "stains": set(),
    "judge_prompts": set(),
    "endpoint": {"images"},
    "score_store": set(),
    "locks": set(),
    "open_clip_weights": set(),
    "config_files": set(),
    "report": set(),
    "model": {"images", "tiling", "prompts"},
    "data": {"images", "prompts", "judge_prompts", "endpoint", "score_store", "open_clip_weights", "report"},
    "pretraining": {"images", "tiling", "prompts", "stains", "locks", "open_clip_weights", "model", "data"},
    "training": {"images", "tiling", "prompts", "model", "data"},
    "evaluation": {
        "images",
        "tiling",
        "prompts",
        "stains",
        "judge_prompts",
        "endpoint",
        "score_store",
        "locks",
        "open_clip_weights",
        "model",
        "data",
        "report",
    },
    "adapters": {"devices", "model"},
    "demo": {
        "config_files",
        "images",
        "tiling",
        "prompts",
        "model",
        "data",
        "pretraining",
        "training",
        "evaluation",
        "report",
    },
}
NO_XTUNER = set(MAY_IMPORT) - {"training"}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").is_file() else sorted((PACKAGE / part).rglob("*.py"))
    for path in files:
        names = imports_of(path)
        ours = {name.split(".")[1] for name in names if name.startswith("pallava.")} - {"__version__"}
        assert ours <= MAY_IMPORT[part] | EVERYBODY | {part}, path
        foreign = {name.split(".")[0] for name in names}
        assert part not in NO_XTUNER or not foreign & {"xtuner", "mmengine"}, path


def test_every_part_has_its_rule() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert parts - {"__init__", "__main__", "cli", "configs"} == {part for part in MAY_IMPORT if part in parts}


def test_nothing_heavy_is_imported_early() -> None:
    code = "import sys, pallava, pallava.cli; print(sorted({'torch', 'transformers', 'xtuner'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
