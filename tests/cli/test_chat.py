"""The command that asks a model folder."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from pallava.cli import main
from tests.tiny import folders


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return folders.save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = folders.build(parts, folders.open_llm(parts, has_lora=True))
    model.config.base_llm = "./gone"
    Image.new("RGB", (60, 40), "pink").save(tmp_path_factory.getbasetemp() / "image.png")
    return folders.save(parts, model, tmp_path_factory.mktemp("model"))


def words_of(folder: Path, tmp: Path, *more: str) -> list[str]:
    return ["chat", str(folder), "--image", str(tmp / "image.png"), "--max-new-tokens", "3", *more]


def test_a_conversation_beside_a_base_that_moved(
    folder: Path, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(folder, tmp_path_factory.getbasetemp(), "--question", "what ?", "--question", "yes ?")
    assert main([*words, "--base-llm", str(parts["llm"])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(words) == 2
    assert "./gone" in capsys.readouterr().err


def test_answers_as_json(
    folder: Path, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(folder, tmp_path_factory.getbasetemp(), "--base-llm", str(parts["llm"]), "--json")
    assert main(words) == 2
    assert "--question" in capsys.readouterr().err
    assert main([*words, "--question", "what ?", "--question", "yes ?"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["question"], second["question"]) == ("what ?", "yes ?")
    assert 0 < first["probability"] <= 1
    assert 0 < first["num_new_tokens"] <= 3
    assert second["num_prompt_tokens"] > first["num_prompt_tokens"]


def test_a_wrong_device_is_one_sentence(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(folder, tmp_path_factory.getbasetemp(), "--question", "what ?", "--device", "cud")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'cud'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
        (["--max-new-tokens", "-3"], "got -3"),
        (["--device", "gpu"], "'gpu'"),
        (["--device", "meta"], "'meta'"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--device", "x" * 500], "xxx"),
        (["--question", " "], "--question must not be empty"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_wrong_values_are_one_sentence_each(
    folder: Path,
    parts: dict[str, Path],
    words: list[str],
    said: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = words_of(folder, tmp_path_factory.getbasetemp(), "--question", "what ?", "--base-llm", str(parts["llm"]))
    assert main([*asked, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert len(error) < 320


def test_serving_without_what_it_needs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "pallava.serving.server", raising=False)
    assert main(["serve", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "uvicorn" in error
    assert "pip install fastapi" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as exited:
        main(["serve", "--help"])
    assert exited.value.code == 0
