"""One evaluation: what is imported with consent alone, and what is refused before a model is opened."""

import sys
from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.evaluation.encoders.look import look
from pallava.evaluation.run import evaluate
from pallava.model.connectors import CONNECTORS
from tests.tiny.answering_model import write_model, write_questions


def test_a_connector_of_ones_own_is_imported_with_consent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny.my_connector import MyConnector, MyConnectorConfig

    connector = MyConnector(MyConnectorConfig(width=8, visual_hidden_size=24, llm_hidden_size=32))
    model = write_model(tmp_path / "model", connector=connector)
    data = write_questions(tmp_path / "data", 2)
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*--trust-remote-code"):
        evaluate(model, "custom", data, max_new_tokens=2)
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*--trust-remote-code"):
        look(model, tmp_path / "data" / "0.png", tmp_path / "look.png")
    assert "tests.tiny.my_connector" not in sys.modules
    report = evaluate(model, "custom", data, max_new_tokens=2, device="cpu", trust_remote_code=True)
    assert report["data"]["questions"]["scores"]
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    with pytest.raises(PallavaError, match="cross-attention"):  # imported, but without tiles to show
        look(model, tmp_path / "data" / "0.png", tmp_path / "look.png", trust_remote_code=True)
