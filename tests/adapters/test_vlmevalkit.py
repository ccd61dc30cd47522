"""VLMEvalKit's interface: messages as its documents describe them."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from tests.tiny.folders import answers
from tests.tiny.harnesses import Run, put_vlmevalkit


@pytest.fixture(params=[True, False], ids=["clone", "package"])
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Run, dict[str, Any]]:
    run, models = Run(), {"other": None}
    put_vlmevalkit(monkeypatch, run, models, is_clone=request.param)
    monkeypatch.setattr("sys.argv", ["vlmevalkit"])
    return importlib.import_module("pallava.adapters.vlmevalkit"), run, models


def test_answers_are_the_models_own(kit: Any, model_folder: Path, images: list[Path]) -> None:
    adapter, _, models = kit
    adapter.register(str(model_folder), max_new_tokens=5)
    asked = models["pallava"]()
    model = PALLaVAForConditionalGeneration.from_pretrained(model_folder)
    processor = PALLaVAProcessor.from_pretrained(model_folder)
    for shown in (images[:1], images[1:2], images[:2], []):
        question = "what is shown here ?"
        inputs = processor(question, [str(path) for path in shown] or None)
        alone = answers(model, processor, inputs, max_new_tokens=5)[0]
        message = [{"type": "image", "value": str(path)} for path in shown] + [{"type": "text", "value": question}]
        assert asked.generate(message, dataset="PathVQA_VAL") == alone != ""
    with pytest.raises(AssertionError):
        asked.generate([{"type": "video", "value": "clip.mp4"}])


def test_the_command_hands_the_rest_to_the_kit(kit: Any, model_folder: Path) -> None:
    adapter, run, models = kit
    adapter.main([str(model_folder), "--data", "PathVQA_VAL", "--mode", "infer"])
    assert run.words == ["--model", "pallava", "--data", "PathVQA_VAL", "--mode", "infer"]
    assert set(models) == {"other", "pallava"}


@pytest.mark.parametrize("words", [[], ["--data", "X"], ["folder", "--model", "other"]])
def test_mistakes_are_one_sentence(kit: Any, words: list[str]) -> None:
    with pytest.raises(PallavaError, match="FOLDER --data"):
        kit[0].main(words)


def test_a_connector_of_ones_own_opens_with_consent_alone(kit: Any, own_connector_folder: Path) -> None:
    adapter, _, models = kit
    adapter.register(str(own_connector_folder), max_new_tokens=2)
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*trust_remote_code"):
        models["pallava"]()
    asked = models["pallava"](trust_remote_code=True)
    assert isinstance(asked.generate([{"type": "text", "value": "what is shown here ?"}]), str)
