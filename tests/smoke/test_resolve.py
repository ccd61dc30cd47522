"""What the package index has fits pyproject.toml on Linux, macOS and Windows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = {"xtuner": "0.2.0", "mmengine": "0.10.6", "bitsandbytes": "0.45.0", "transformers": "4.48.0"}
IN_ALL = {"torch", "torchvision", "transformers", "peft", "open-clip-torch", "fastapi", "uvicorn", "pytest"}


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("version", ["3.10", "3.12"])
@pytest.mark.parametrize("system", ["linux", "aarch64-apple-darwin", "windows"])
def test_requirements_resolve(system: str, version: str) -> None:
    uv = pytest.importorskip("uv").find_uv_bin()
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", "serve", "--extra", "test"]
    command += ["--python-platform", system, "--python-version", version, str(ROOT / "pyproject.toml")]
    environment = {"UV_DEFAULT_INDEX": index, **os.environ} if (index := index_of_pip()) else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(";")[0].strip() for line in done.stdout.splitlines()]
    found = dict(line.split("==") for line in lines if "==" in line)
    assert found.keys() >= IN_ALL
    if system == "linux":
        assert {name: found.get(name) for name in PINNED} == PINNED
        assert {"deepspeed", "webdataset", "tensorboard"} <= found.keys()
    else:
        assert not found.keys() & {"xtuner", "mmengine", "bitsandbytes", "deepspeed", "webdataset", "tensorboard"}
        assert found["transformers"].startswith("5.")


def index_of_pip() -> str:
    """The package index that pip asks, if a setting names one."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    lines = (line.partition("=") for line in done.stdout.splitlines())
    values = {name.split(".")[-1].strip(":'"): value.strip("'") for name, _, value in lines}
    return values.get("index-url", "")
