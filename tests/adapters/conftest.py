import sys
from pathlib import Path

import pytest

from pallava.model.connectors import CONNECTORS
from tests.tiny.answering_model import write_model, write_questions


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    write_questions(folder, 1)
    return sorted(folder.glob("*.png"))


@pytest.fixture
def own_connector_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose connector is defined in a module that is not imported yet."""
    from tests.tiny.my_connector import MyConnector, MyConnectorConfig

    connector = MyConnector(MyConnectorConfig(width=8, visual_hidden_size=24, llm_hidden_size=32))
    folder = write_model(tmp_path / "model", connector=connector)
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    return folder
