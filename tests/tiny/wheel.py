"""The wheel of the working tree."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.md", "configs", "pallava", "pyproject.toml")


def build_wheel(folder: Path, sources: Iterable[str] = SOURCES) -> Path:
    """Build it from a copy of these files and folders alone."""
    folder.mkdir(exist_ok=True)
    for name in sources:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (folder / "wheels").iterdir()
    return wheel
