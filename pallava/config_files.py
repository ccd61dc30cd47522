"""Where our configs are, and how a user names them."""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pallava
from pallava.errors import PallavaError


def configs_dir() -> Path:
    """The folder of our configs: the package `pallava.configs` once installed, `configs/` in a clone."""
    inside = Path(pallava.__file__).parent / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def config_names() -> list[str]:
    """Names of our configs as a user gives them: "pallava_domain_alignment", "demo/pallava_domain_alignment", ..."""
    folder = configs_dir()
    files = (path.relative_to(folder) for path in folder.rglob("*.py") if not path.name.startswith("_"))
    return sorted(path.with_suffix("").as_posix() for path in files)


def find_config(name: str) -> Path:
    """The file of a config: a path, the name of one of ours, or the name of one of xtuner's.

    Raises:
        PallavaError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    if name.removesuffix(".py") in config_names():
        return configs_dir() / f"{name.removesuffix('.py')}.py"
    for path in (_xtuner_dir() / "configs").rglob(f"{Path(name).name}.py"):
        if path.stem == name:
            return path
    raise PallavaError(f"No config {name}: give the path of a file, or one of {', '.join(config_names())}.")


def check_overrides(config: Path, options: Sequence[str]) -> None:
    """Refuses ``--cfg-options`` that would change nothing, and a config that is no Python.

    A config is read from top to bottom, and only then changed: what it has computed from a setting keeps the old value.

    Args:
        config: The file.
        options: ``KEY=VALUE``, with dots in the key where it reaches into a part.

    Raises:
        PallavaError: A key is that of a setting which the config reads itself, or the file is no Python.
    """
    try:
        module = ast.parse(config.read_text(encoding="utf-8"), str(config))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise PallavaError(f"{config} is no config that Python can read: {error}.") from None
    nodes = list(ast.walk(module))
    reached_into = {id(node.value) for node in nodes if isinstance(node, ast.Attribute | ast.Subscript)}  # to set parts
    loaded = (node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    read = {node.id for node in loaded if id(node) not in reached_into}
    for key in (option.split("=")[0] for option in options):
        if key.split(".")[0] in read:
            raise PallavaError(
                f"--cfg-options {key}=... would change nothing, since the config has read it by then: set it in a copy "
                "(`pallava config copy`), or give the full key that the trainer reads, such as "
                "optim_wrapper.optimizer.lr=1e-5."
            )


def train_script() -> Path:
    """Xtuner's trainer, as its own command runs it."""
    return _xtuner_dir() / "tools" / "train.py"


def _xtuner_dir() -> Path:
    spec = importlib.util.find_spec("xtuner")  # looks, does not import
    if spec is None or not spec.submodule_search_locations:
        raise PallavaError("xtuner is not installed here: run `pip install xtuner==0.2.0`.")
    return Path(spec.submodule_search_locations[0])
