"""What several test modules share."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background; all that tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_mmengine_logger() -> Iterator[None]:
    """mmengine keeps its logger, and with it the stdout that a test captured: closed once the test is over."""
    yield
    if "mmengine.logging" in sys.modules:
        from mmengine.logging import MMLogger

        MMLogger._instance_dict.clear()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recorded numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, fetched once and kept between runs."""
    from pallava.demo.fetch import fetch_smollm2

    return fetch_smollm2()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_folder: Path):
    """Tokenizer of SmolLM2-135M-Instruct; its end token is <|im_end|> (id 2)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint's client waits hardly at all before it tries again."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


@pytest.fixture
def dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy that answers nobody, for all hosts."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
