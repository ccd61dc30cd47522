"""An environment of what macOS and Windows get: without xtuner and what else only training needs."""

import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tiny.wheel import build_wheel

ELSEWHERE = {"sys_platform": "darwin"}  # what pyproject.toml asks for there; what that needs in turn is Linux's
FOR_TRAINING = ("xtuner", "mmengine", "deepspeed", "bitsandbytes", "webdataset", "tensorboard")


def make_environment(folder: Path, *extras: str) -> Path:
    """The Python of a new environment with the wheel of this working tree, and this environment's packages by links."""
    wheel = build_wheel(folder / "wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, install)], check=True)
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    (pallava,) = metadata.distributions(name="pallava", path=[str(site)])
    lines = [Requirement(line) for line in pallava.requires or ()]
    link_packages(folder / "packages", [each for each in lines if is_wanted(each, extras, ELSEWHERE)])
    (site / "packages.pth").write_text(str(folder / "packages"))
    return python


def is_wanted(requirement: Requirement, extras: Iterable[str], elsewhere: dict[str, str] | None = None) -> bool:
    """Whether a requirement counts here, or elsewhere."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**(elsewhere or {}), "extra": extra}) for extra in ("", *extras))


def link_packages(folder: Path, requirements: list[Requirement]) -> None:
    """Links to the packages required, and to all that these require."""
    folder.mkdir()
    waiting, done = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        name = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if name in done:
            continue
        done.add(name)
        package = metadata.distribution(requirement.name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        needs = map(Requirement, package.requires or ())
        waiting += [need for need in needs if is_wanted(need, requirement.extras)]
