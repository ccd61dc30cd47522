"""No message is longer than 300 characters or holds a picture, whatever a user hands in."""

import base64
import inspect
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

import pallava
from pallava.cli import COMMANDS, main
from pallava.data.sources.files import RowDropped
from pallava.errors import PallavaError
from pallava.images import image_size
from pallava.model import PALLaVAProcessor, load_image_processor
from pallava.model.loading import find_folder
from tests.tiny.training import save_parts


def picture(format: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PNG, JPEG = picture("PNG"), picture("JPEG")
BASE64 = {base64.b64encode(content).decode() for content in (PNG, JPEG)}
TEXTS = {
    "words": "word " * 200_000,
    "letters": "a" * 1_000_000,
    "path": "/tmp/" + "d/" * 2500,
    "nul": "a\0b" * 5000,
    "url": "https://localhost/" + "y" * 5000,
    **{f"base64 {len(text)}": text for text in BASE64},
    **{f"data {len(text)}": f"data:image/png;base64,{text[:-7]}!" for text in BASE64},
}
VALUES = {
    **TEXTS,
    "bytes": PNG[:-5000],
    "array": np.zeros((2, 3, 40, 5, 6)),
    "dict": {str(key): text for key in range(100) for text in BASE64},
    "list": [*BASE64] * 20,
}


def check(message: str) -> None:
    assert len(message) <= 300
    assert "\\x89PNG" not in message
    assert not [text for text in BASE64 if text[:30] in message or text[2000:2020] in message], message


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> PALLaVAProcessor:
    parts = save_parts(tmp_path_factory.mktemp("parts"))
    return PALLaVAProcessor(
        load_image_processor(parts["plip"]), AutoTokenizer.from_pretrained(parts["llm"]), "qwen_chat"
    )


def calls_of_processor(processor: PALLaVAProcessor) -> Iterator[Callable[[Any], Any]]:
    image = Image.new("RGB", (8, 8))
    yield lambda value: pallava.make_tiles(value, processor.tile_spec)
    yield lambda value: processor("what ?", value)
    yield lambda value: processor("what ?", [value, value])
    yield lambda value: processor([value, value], [image] * 3)
    yield lambda value: processor("what ?", image, **{str(value): 1})
    yield lambda value: processor("what ?", image, return_tensors=value)
    yield lambda value: pallava.ask(None, processor, value, "what ?")
    for key in ("image", "url", "path", "base64", "image_url", "type", "video"):
        part = {"type": "image", "text": "what ?"}
        yield lambda value, key=key, part=part: processor.apply_chat_template(
            [{"role": "user", "content": [{**part, key: value}]}], tokenize=True
        )
    for key in ("from", "value"):
        yield lambda value, key=key: processor([[{"from": "human", "value": "a", key: value}]], image)
    yield lambda value: processor.apply_chat_template([{"role": value, "content": "what ?"}])
    yield lambda value: processor.apply_chat_template([{"role": "user", "content": [value]}])
    yield lambda value: PALLaVAProcessor(processor.image_processor, processor.tokenizer, value)


@pytest.mark.parametrize("kind", VALUES)
def test_pictures_and_messages(kind: str, processor: PALLaVAProcessor) -> None:
    num_refused = 0
    for call in (pallava.open_image, image_size, *calls_of_processor(processor)):
        try:
            call(VALUES[kind])
        except Exception as error:
            check(str(error))
            num_refused += isinstance(error, PallavaError)
    assert num_refused > 10


def functions() -> Iterator[tuple[Callable, str]]:
    for name in ("load", "clean", "convert", "evaluate", "load_encoder", "look", "write_training_file"):
        function = getattr(pallava, name)
        for each in inspect.signature(function).parameters.values():
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                yield function, each.name


@pytest.mark.parametrize("kind", TEXTS)
def test_functions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (partial(find_folder, options={}), PALLaVAProcessor.from_pretrained):
        with pytest.raises(PallavaError) as caught:
            call(TEXTS[kind])
        check(str(caught.value))
    for function, name in functions():
        parameters = inspect.signature(function).parameters.values()
        needed = {each.name: "nothing" for each in parameters if each.default is each.empty}
        needed = {key: value for key, value in needed.items() if key not in ("options", "settings")}
        with pytest.raises((PallavaError, TypeError, AttributeError)) as caught:
            function(**{**needed, name: TEXTS[kind]})
        check(str(caught.value))


@pytest.mark.parametrize("kind", TEXTS)
def test_commands(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], *(name.split() for name in COMMANDS if name not in ("demo", "train"))):
        with suppress(SystemExit):
            assert main([*words, f"--nothing={TEXTS[kind]}"]) == 2
        lines = capsys.readouterr().err.splitlines()
        check(next(line for line in lines if "error: " in line).partition("error: ")[2])
    assert main(["chat", TEXTS[kind], "--image", TEXTS[kind], "--question", "what ?"]) == 2
    check(capsys.readouterr().err.removeprefix("error: "))


def test_a_dropped_row() -> None:
    for text in TEXTS.values():
        check(str(RowDropped("malformed", f"{text} is not the name of a file")))


def test_both_ends_and_names_are_kept() -> None:
    message = str(PallavaError(f"the file '{'word ' * 100}' is missing; give another"))
    assert message.startswith("the file 'word")
    assert message.endswith("' is missing; give another")
    message = str(PallavaError(f"'/data/{'folder/' * 30}a.bin' was not opened; {'nothing in it was run; ' * 7}mend it"))
    assert message.startswith("'/data/folder/")
    assert message.count("nothing in it was run") == 7
    assert "folder/a.bin' was not opened" in message
    for name in (f"/Data/slides/{'0af9' * 16}.png", "/Users/SomeBody/Slides of 2024/TCGA-A1-A0SB-01Z-00-DX1.B34C267B"):
        assert name in str(PallavaError(f"'{name}' is missing"))


def test_the_traceback_of_a_data_loaders_worker_is_left_out() -> None:
    """It re-raises the error with its message after all of that."""
    trace = "\n".join(f'  File "/site-packages/PIL/ImageFile.py", line {number}, in load' for number in range(20))
    message = (
        f"Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n{trace}\n"
    )
    assert str(PallavaError(f"{message}pallava.images.ImageError: cannot read image 'a.png'\n")) == (
        "cannot read image 'a.png'"
    )
