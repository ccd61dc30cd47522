"""The language model in another server: it gets the embeddings of `fuse`, and its words are the answer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.model import ask as ask_model
from pallava.model import load
from pallava.serving.engine import EngineModel, check_is_here
from tests.tiny.engine import StubEngine, engine
from tests.tiny.server import ask, body, picture, serving

PATH = "/v1/chat/completions"


@pytest.fixture
def stub(parts: Any) -> Any:
    with engine(parts[0].llm, parts[1].tokenizer) as server:
        yield server


def test_answers_by_an_engine(folder: Path, parts: Any, stub: StubEngine) -> None:
    """Many at once, with a second turn, in pieces: embeddings and answers are those of the model as a whole."""
    model, processor = parts
    with serving(*load(folder, "cpu"), engine=stub.url, max_batch=4) as url, ThreadPoolExecutor(6) as pool:

        def post(number: int) -> Any:
            return httpx.post(url + PATH, json=body("what is shown ?", number, max_tokens=9), timeout=60).json()

        answers = list(pool.map(post, range(6)))
        for number, answer in enumerate(answers):
            expected = ask_model(*parts, picture(number), "what is shown ?", max_new_tokens=9)
            assert answer["choices"][0]["message"]["content"] == expected
            inputs = processor("what is shown ?", picture(number))
            fused = model.fuse(inputs["input_ids"], model.encode_images(inputs["pixel_values"]))["inputs_embeds"][0]
            (same,) = [
                each for each in stub.prompts if each.shape == fused.shape and torch.allclose(each, fused, atol=1e-5)
            ]
            assert answer["usage"]["prompt_tokens"] == len(same)
            assert 0 < answer["usage"]["completion_tokens"] <= 9
            assert answer["pallava"]["probability"] == pytest.approx(0.6065, abs=1e-4)
        text = answers[0]["choices"][0]["message"]["content"]
        messages = [ask("what is shown ?", 0), {"role": "assistant", "content": text}, ask("yes ?")]
        given = {"messages": messages, "max_tokens": 9, "stream": True, "stop": ["never"], "temperature": 1, "seed": 5}
        with httpx.stream("POST", url + PATH, json=given, timeout=60) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert len(lines) > 5
        assert (stub.requests[-1]["seed"], stub.requests[-1]["temperature"]) == (5, 1)
        assert stub.requests[-1]["stop"] == ["never"]


def test_an_engine_that_fails(folder: Path, stub: StubEngine) -> None:
    with serving(*load(folder, "cpu"), engine=stub.url) as url:
        stub.status = 503
        answer = httpx.post(url + PATH, json=body(), timeout=60)
        assert answer.status_code == 503
        assert "out of blocks" in answer.json()["error"]["message"]
        stub.status = 200
        assert httpx.post(url + PATH, json=body(), timeout=60).status_code == 200


def test_an_engine_that_refuses(folder: Path, stub: StubEngine) -> None:
    """A request that it cannot take is the client's fault, as one that pallava refuses."""
    with serving(*load(folder, "cpu"), engine=stub.url) as url:
        stub.status = 400
        answer = httpx.post(url + PATH, json=body(), timeout=60)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_an_engine_that_ends_in_the_middle(folder: Path, stub: StubEngine) -> None:
    with serving(*load(folder, "cpu"), engine=stub.url) as url:
        stub.has_end = False
        assert httpx.post(url + PATH, json=body(), timeout=60).status_code == 503
        lines = httpx.post(url + PATH, json=body(stream=True), timeout=60).text.split("\n\n")
        assert '"server_error"' in lines[-3]
        assert "[DONE]" in lines[-2]


def test_an_engine_that_is_silent(folder: Path, stub: StubEngine) -> None:
    with serving(*load(folder, "cpu"), engine=stub.url, timeout=1) as url:
        stub.delay = 10
        assert httpx.post(url + PATH, json=body(), timeout=8).status_code == 503


@pytest.mark.usefixtures("dead_proxies")
def test_an_engine_is_asked_without_a_proxy(folder: Path, stub: StubEngine) -> None:
    """Which would see the images."""
    chat = EngineModel(*load(folder, "cpu"), stub.url)
    chat.reply([chat.request([{"role": "user", "content": "what ?"}], max_new_tokens=2)])
    assert len(stub.requests) == 1


def test_an_engine_that_cannot_be_used(folder: Path, stub: StubEngine, capsys: pytest.CaptureFixture[str]) -> None:
    stub.models = ["one", "two"]
    for url, said in ((stub.url, "one, two"), ("http://127.0.0.1:9/v1", "cannot be reached")):
        assert main(["serve", str(folder), "--port", "0", "--engine", url]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://example.org/v1", "http://10.0.0.1/v1", "ftp://localhost", "localhost:80", "http://[::1", ""]
)
def test_an_engine_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(PallavaError, match="on this machine"):
        check_is_here(url)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.2/v1", "https://[::1]:5/v1"])
def test_an_engine_here(url: str) -> None:
    check_is_here(url)
