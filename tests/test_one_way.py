"""One way for each purpose: what `pallava.io` does is done nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pallava"
# Modules and functions that belong to io/, and the files that have a reason of their own.
OF_IO = {
    "fcntl": {"processes"},
    "filelock": {"processes"},
    "hashlib": {"hashing"},
    "os.sched_getaffinity": {"processes"},
    "os.cpu_count": {"processes"},
    "tempfile.mkdtemp": set(),
    "tempfile.NamedTemporaryFile": set(),
    "sqlite3": {"store", "data/clean/images"},  # which keeps millions of keys off the memory, in no file
}
WRITING = {"write_text", "write_bytes"}
LOGS = {"demo/pipeline"}  # open while others write to them


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def files() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "configs" not in path.parts:
            yield path.relative_to(PACKAGE).with_suffix("").as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_what_belongs_to_io() -> None:
    for place, tree in files():
        for name in set(names_in(tree)) & OF_IO.keys():
            assert place.removeprefix("io/") in OF_IO[name], f"{place} uses {name}"


def test_files_are_written_whole() -> None:
    """Outside io/ no file is opened for writing or written by pathlib, but below a folder that appears whole."""
    for place, tree in files():
        if place.startswith("io/") or place in LOGS:
            continue
        whole = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("whole_folder" in ast.unparse(item) for item in block.items)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and id(node) not in whole:
                assert node.func.attr not in WRITING, f"{place}:{node.lineno} writes a file in place"
                mode = node.args[0] if node.func.attr == "open" and node.args else None
                is_writing = isinstance(mode, ast.Constant) and str(mode.value)[:1] in ("w", "x", "a")
                assert not is_writing, f"{place}:{node.lineno} opens a file for writing in place"
