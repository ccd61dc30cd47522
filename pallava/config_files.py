"""Configs: where they are, and the names by which a user chooses one."""

import ast
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pallava
from pallava.errors import PallavaError
from pallava.io.stacks import installed_stack

DEEPSPEED_SETTINGS = "pallava_zero1, pallava_zero2, deepspeed_zero1, deepspeed_zero2, or a JSON file"
"""What `--deepspeed` takes, for messages."""


def configs_dir() -> Path:
    """Return the folder of our configs: the package `pallava.configs` once installed, `configs/` in a clone."""
    inside = Path(pallava.__file__).parent / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def config_names() -> list[str]:
    """Return the names of our configs, such as "pallava_domain_alignment" or "demo/pallava_domain_alignment"."""
    folder = configs_dir()
    files = (path.relative_to(folder) for path in folder.rglob("*.py") if not path.name.startswith("_"))
    return sorted(path.with_suffix("").as_posix() for path in files)


def find_config(name: str) -> Path:
    """Return the file of a config: a path, the name of one of ours, or the name of one of xtuner's.

    Raises:
        PallavaError: None of these exists.
    """
    if Path(name).is_file():
        return Path(name)
    if name in config_names():
        return configs_dir() / f"{name}.py"
    for folder in _xtuner_folders():
        for path in (folder / "configs").rglob(f"{Path(name).name}.py"):
            if path.stem == name:
                return path
    raise PallavaError(
        f"config '{name}' does not exist; give the path of a file, or choose {', '.join(config_names())}"
    )


def check_syntax(config: Path) -> None:
    """Refuse a config that Python cannot read, by an error that names the file, the line and what is wrong."""
    try:
        ast.parse(config.read_text(encoding="utf-8"), str(config))
    except (SyntaxError, ValueError) as error:
        raise PallavaError(f"config '{config}' is not valid Python: {error}") from None


def check_can_train() -> None:
    """Refuse to train where xtuner is not installed, which needs Linux, or beside a transformers that only answers.

    Raises:
        PallavaError: Either is the case.
    """
    if any(_xtuner_folders()):
        installed_stack(trains=True)
        return
    if sys.platform != "linux":
        raise PallavaError(
            f"training needs Linux, got {platform.system()}; train there, and ask, evaluate or serve the model here"
        )
    raise PallavaError(
        "training needs xtuner, which is not installed; install pallava in an environment of its own, with all that "
        "it requires (`pip install .`)"
    )


def train_script() -> Path:
    """Return the file of xtuner's trainer, which its own command runs; raise as `check_can_train` does."""
    check_can_train()
    return next(_xtuner_folders()) / "tools" / "train.py"


def _xtuner_folders() -> Iterator[Path]:
    """Yield the folder of xtuner, if it is installed; it is not imported."""
    spec = importlib.util.find_spec("xtuner")
    yield from map(Path, (spec and spec.submodule_search_locations) or ())
