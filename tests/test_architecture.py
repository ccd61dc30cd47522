"""Who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pallava"
# Each part (a folder) and the parts that it may import. Files at the top of the package are the foundation of all
# parts but `io` and `report`: they import each other, and io.
MAY_IMPORT = {
    "io": set(),
    "report": set(),
    "model": {"io", "report"},
    "judging": {"io"},
    "data": {"io", "judging", "report"},
    "training": {"io", "model", "data"},
    "pretraining": {"io", "model", "data"},
    "evaluation": {"io", "model", "data", "judging", "report"},
    "serving": {"io", "model"},
    "adapters": {"io", "model"},
    "demo": {"io", "model", "data", "judging", "training", "pretraining", "evaluation", "report"},
    "cli": {"io", "model", "data", "judging", "training", "pretraining", "evaluation", "serving", "report", "demo"},
}
FOUNDATION_OF = {"io": {"errors"}, "report": set()}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Everything that a module imports at any depth of its code; of ours the module that holds the name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[module]} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(found)


def part_of(module: str) -> str:
    """The folder that a module is in, or nothing at the top of the package."""
    words = module.split(".")
    return words[1] if len(words) > 1 and (PACKAGE / words[1]).is_dir() else ""


def ours(module: str) -> Iterator[str]:
    return (name for name in imports_of(module) if name in MODULES and name != module)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    for module in (name for name in MODULES if part_of(name) == part):
        imported = set(ours(module))
        assert {part_of(name) for name in imported} - {""} <= MAY_IMPORT[part] | {part}, module
        top = {name.split(".")[-1] for name in imported if not part_of(name) and name != "pallava"}
        assert part not in FOUNDATION_OF or top <= FOUNDATION_OF[part], module


def test_the_foundation_imports_no_part_but_io() -> None:
    for module in (name for name in MODULES if not part_of(name) and name not in ("pallava", "pallava.__main__")):
        assert {part_of(name) for name in ours(module)} <= {"", "io"}, module


def test_every_part_has_its_rule() -> None:
    assert {part_of(name) for name in MODULES} - {"", "configs"} == set(MAY_IMPORT)


def test_xtuner_is_imported_in_training_alone() -> None:
    for module in (name for name in MODULES if part_of(name) not in ("training", "configs")):
        assert not {name.split(".")[0] for name in imports_of(module)} & {"xtuner", "mmengine"}, module


def test_no_circle() -> None:
    """Removes, again and again, what imports or is imported by nothing that is left; a circle is what stays."""
    left = {module: set(ours(module)) for module in MODULES}
    while left:
        imported = set().union(*left.values())
        circle = {module: names & left.keys() for module, names in left.items() if names & left.keys()}
        circle = {module: names for module, names in circle.items() if module in imported}
        if len(circle) == len(left):
            break
        left = circle
    assert left == {}


def test_sizes_of_rooms() -> None:
    folders: dict[Path, int] = {}
    for path in MODULES.values():
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > 15} == {}


def test_nothing_heavy_is_imported_early() -> None:
    """Nor to declare the arguments of `pallava serve`, which are those of a class."""
    code = (
        "import sys, pallava, pallava.cli; pallava.cli.load_command('serve')[0](pallava.cli._Parser()); "
        "print(sorted({'torch', 'transformers', 'xtuner', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
