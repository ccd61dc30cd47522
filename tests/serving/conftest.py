"""One tiny model for all tests of serving."""

from pathlib import Path
from typing import Any

import pytest

from pallava.model import load
from tests.tiny.answering_model import write_model


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="package")
def parts(folder: Path) -> Any:
    """Model and processor."""
    return load(folder, "cpu")
