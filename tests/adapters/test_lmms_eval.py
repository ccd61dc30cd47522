"""lmms-eval's interface: requests as its documents describe them."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from tests.tiny.folders import answers
from tests.tiny.harnesses import Instance, put_lmms_eval

QUESTIONS = [
    "what is shown here ?",
    "is necrosis present ?",
    "describe the image . few nuclei many gland stain",
    "yes ?",
]
SHORT = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    put_lmms_eval(monkeypatch)
    return importlib.import_module("pallava.adapters.lmms_eval")


def to_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    shown = [{"type": "image", "url": image} for image in document["images"]]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": document["question"]}]}]


def requests_of(model: Any, documents: list[dict[str, Any]], options: list[dict[str, Any]]) -> list[Instance]:
    model.task_dict["task"] = {"test": documents}
    return [
        Instance((document["question"], to_messages, own, number, "task", "test"))
        for number, (document, own) in enumerate(zip(documents, options, strict=True))
    ]


def test_answers_are_the_models_own_in_the_order_of_requests(
    adapter: Any, model_folder: Path, images: list[Path]
) -> None:
    documents = [{"images": [Image.open(images[n])], "question": text} for n, text in enumerate(QUESTIONS)]
    documents.append({"images": [str(images[0]), Image.open(images[1])], "question": "what is shown here ?"})
    documents.append({"images": [], "question": "what is necrosis ?"})
    options = [{"max_new_tokens": 6 if number % 2 else 4, "until": ["\n\n"]} for number in range(len(documents))]
    model = PALLaVAForConditionalGeneration.from_pretrained(model_folder)
    processor = PALLaVAProcessor.from_pretrained(model_folder)
    alone = [
        answers(model, processor, processor(d["question"], d["images"] or None), max_new_tokens=o["max_new_tokens"])[0]
        for d, o in zip(documents, options, strict=True)
    ]
    assert len(set(alone)) > 3
    asked = adapter.PALLaVA(pretrained=str(model_folder), batch_size="3", max_batch_size=None, device="cpu")
    assert asked.generate_until(requests_of(asked, documents, options)) == alone
    assert not asked.is_simple
    assert (asked.rank, asked.batch_size, str(asked.device)) == (0, 3, "cpu")


def test_tasks_say_how_to_answer(adapter: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = adapter.PALLaVA(pretrained=str(model_folder))
    seen: list[dict[str, Any]] = []

    def answer(model: Any, processor: Any, conversations: list[Any], **options: Any) -> list[str]:
        seen.append(options)
        return ["first\n\nsecond. third"] * len(conversations)

    monkeypatch.setattr(adapter, "answer", answer)
    options = [
        {**SHORT, "until": ["\n\n"]},
        {"temperature": 0.7, "top_p": 0.9, "do_sample": True},
        {**SHORT, "until": "."},
        {"temperature": None, "num_beams": 3, "top_p": None, "unknown": 1},
        {"temperature": 0.7, "do_sample": False},
    ]
    documents = [{"images": [], "question": text} for text in [*QUESTIONS, "no ?"]]
    said = asked.generate_until(requests_of(asked, documents, options))
    assert said == ["first", "first\n\nsecond. third", "first\n\nsecond", *["first\n\nsecond. third"] * 2]
    sampled = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert seen == [{"max_new_tokens": 4}] * 2 + [
        sampled,
        {"max_new_tokens": 256, "num_beams": 3},
        {"max_new_tokens": 256},
    ]


def test_what_it_cannot_do_is_said(adapter: Any, model_folder: Path) -> None:
    with pytest.raises(PallavaError, match="batch_size.*'auto'"):
        adapter.PALLaVA(pretrained=str(model_folder), batch_size="auto")
    with pytest.raises(PallavaError, match="device 'nowhere'"):
        adapter.PALLaVA(pretrained=str(model_folder), device="nowhere")
    with pytest.raises(PallavaError, match="not a model folder"):
        adapter.PALLaVA(pretrained="nowhere")
    asked = adapter.PALLaVA(pretrained=str(model_folder))
    with pytest.raises(PallavaError, match="output_type generate_until"):
        asked.loglikelihood([])
    with pytest.raises(PallavaError, match="output_type generate_until"):
        asked.generate_until_multi_round([])
    (request,) = requests_of(asked, [{"images": [], "question": "what ?"}], [{}])
    clip = [{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}]
    with pytest.raises(PallavaError, match="a video"):
        asked.generate_until([Instance((request.args[0], lambda document: clip, *request.args[2:]))])


def test_the_entry_point_names_the_class(adapter: Any) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (value,) = re.findall(r'\n\[project\.entry-points\."lmms_eval\.models"\]\npallava = "(.*)"\n', text)
    module, function = value.split(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest.model_id == "pallava"
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is adapter.PALLaVA


def test_a_connector_of_ones_own_opens_with_consent_alone(adapter: Any, own_connector_folder: Path) -> None:
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*trust_remote_code"):
        adapter.PALLaVA(pretrained=str(own_connector_folder))
    opened = adapter.PALLaVA(pretrained=str(own_connector_folder), trust_remote_code=True)
    assert not opened._model.config.connector_config.reads_tiles
