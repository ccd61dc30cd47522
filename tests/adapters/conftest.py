from pathlib import Path

import pytest

from tests.tiny.answering_model import write_model, write_questions


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    write_questions(folder, 1)
    return sorted(folder.glob("*.png"))
