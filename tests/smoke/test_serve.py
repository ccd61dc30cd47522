"""`pallava serve` as it is typed: its first line, its end by a signal, and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pallava.cli import main
from tests.tiny.answering_model import write_model
from tests.tiny.server import body

pytestmark = pytest.mark.smoke
PATH = "/v1/chat/completions"
SLOW = """
import time
from transformers import LlamaForCausalLM
forward = LlamaForCausalLM.forward
LlamaForCausalLM.forward = lambda *args, **how: time.sleep(0.2) or forward(*args, **how)
from pallava.cli import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@contextmanager
def served(folder: Path, *words: str, code: tuple[str, ...] = ("-m", "pallava"), **environment: str) -> Iterator[Any]:
    """The process and its URL."""
    command = [sys.executable, *code, "serve", str(folder), "--port", "0", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line.startswith("serving "), process.communicate(timeout=30)
            yield process, next(word for word in line.split() if word.startswith("http")).rstrip("/")
        finally:
            process.kill()


def test_a_signal_lets_running_answers_end(folder: Path) -> None:
    with served(folder, "--name", "mine", code=("-c", SLOW)) as (process, url):
        assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "mine"
        given = {**body(), "max_tokens": 10, "stream": True}
        with httpx.stream("POST", url + PATH, json=given, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")


def test_ctrl_c_ends_it_without_a_traceback(folder: Path) -> None:
    with served(folder) as (process, url):
        assert httpx.get(url + "/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()


def test_other_machines_need_a_key(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("PALLAVA_API_KEY", raising=False)
    assert main(["serve", str(folder), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "PALLAVA_API_KEY" in capsys.readouterr().err
    with served(folder, "--host", "0.0.0.0", PALLAVA_API_KEY="sesame") as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url + "/v1/models").status_code == 401
        assert httpx.get(url + "/v1/models", headers={"Authorization": "Bearer sesame"}).status_code == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "65535"),
        (["--port", "-1"], "-1"),
        (["--max-batch", "0"], "--max-batch"),
        (["--timeout", "0"], "--timeout"),
        (["--max-waiting", "0"], "--max-waiting"),
        (["--allow-url", "https://example.org"], "https://example.org"),
        (["--allow-url", "example.org:80"], "example.org:80"),
        (["--max-pixels", "0"], "--max-pixels"),
        (["--host", "nowhere.invalid"], "PALLAVA_API_KEY"),
        (["--device", "gpu"], "'gpu'"),
        (["--engine", "http://example.org/v1"], "--engine"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("PALLAVA_API_KEY", raising=False)
    assert main(["serve", str(folder), "--port", "0", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_host_that_cannot_be_one(
    folder: Path, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("PALLAVA_API_KEY", "sesame")
    assert main(["serve", str(folder), "--host", host]) == 2
    assert host in capsys.readouterr().err


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", str(folder), "--port", port]) == 2
    assert port in capsys.readouterr().err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    assert "nowhere" in capsys.readouterr().err
