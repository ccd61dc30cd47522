"""Configs: where they are, and the names by which a user chooses one."""

import ast
import importlib.util
from pathlib import Path

import pallava
from pallava.errors import PallavaError


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
    for path in (_xtuner_dir() / "configs").rglob(f"{Path(name).name}.py"):
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


def train_script() -> Path:
    """Return the file of xtuner's trainer, which its own command runs."""
    return _xtuner_dir() / "tools" / "train.py"


def _xtuner_dir() -> Path:
    spec = importlib.util.find_spec("xtuner")  # looks, does not import
    if spec is None or not spec.submodule_search_locations:
        raise PallavaError("xtuner is not installed; run `pip install xtuner==0.2.0`")
    return Path(spec.submodule_search_locations[0])
