"""Pictures as people hand them over: all forms of one picture give the same."""

import base64
import io
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from pallava import image_sources
from pallava.images import ImageError, image_size, open_image
from pallava.model import PALLaVAProcessor, load_image_processor
from tests.tiny.pictures import noise
from tests.tiny.training import save_parts

PIXELS = np.asarray(noise(40, 24))
BUFFER = io.BytesIO()
Image.fromarray(PIXELS).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()
BASE64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{BASE64}"


def channels_first(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.transpose(2, 0, 1))


FORMS = {
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "array": PIXELS,
    "array of floats": PIXELS / 255,
    "array of half floats": (PIXELS / 255).astype(np.float16),
    "array, channels first": channels_first(PIXELS),
    "array with alpha": np.dstack([PIXELS, np.full((24, 40), 255, np.uint8)]),
    "tensor": torch.tensor(PIXELS),
    "tensor, channels first": torch.tensor(channels_first(PIXELS)),
    "tensor of floats": torch.tensor(channels_first(PIXELS) / 255, requires_grad=True),
    "base64": URL,
    "base64 in lines": URL[:100] + "\r\n" + URL[100:],
    "base64 in capitals": "DATA:image/PNG;BASE64," + BASE64,
    "base64, quoted": "data:;base64," + quote(BASE64, safe=""),
    "percent": "data:image/png," + quote(PNG),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str) -> None:
    np.testing.assert_array_equal(np.asarray(open_image(FORMS[form])), PIXELS)
    assert image_size(FORMS[form]) == (40, 24)


def test_a_stream_and_a_file_url(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    np.testing.assert_array_equal(np.asarray(open_image((tmp_path / "a b.png").as_uri())), PIXELS)


def test_grey_arrays() -> None:
    grey = PIXELS[..., 0]
    for form in (grey, grey[..., None], grey[None], grey / 255, torch.tensor(grey)[None]):
        np.testing.assert_array_equal(np.asarray(open_image(form))[..., 1], grey)


def test_channels_of_three_by_three_are_last_in_arrays_and_first_in_tensors() -> None:
    values = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    np.testing.assert_array_equal(np.asarray(open_image(values)), values)
    np.testing.assert_array_equal(np.asarray(open_image(torch.tensor(values))), values.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (PIXELS[None], "1 x 24 x 40 x 3 of uint8"),
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS > 9, "bool"),
        (PIXELS.astype(np.float32), "float32 from 2 to 255"),
        (PIXELS / 255 - 0.5, "from -0.49[0-9]* to 0.5"),
        (np.full((4, 4), np.nan), "nan"),
        (np.zeros((5, 7, 2), np.uint8), "5 x 7 x 2"),
        (np.zeros((0, 7, 3), np.uint8), "0 x 7 x 3"),
        (np.zeros(7, np.uint8), "7 of uint8"),
        (torch.zeros(1, 3, 4, 4), "1 x 3 x 4 x 4 of float32"),
    ],
)
def test_other_arrays_are_refused(values: object, found: str) -> None:
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match=f"got .*{found}"):
            read(values)


@pytest.mark.parametrize("value", [None, 3, [PNG], {"bytes": PNG}, object()])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ImageError, match=f"got a {type(value).__name__}"):
        open_image(value)


def test_an_empty_path_is_shown_as_one() -> None:
    with pytest.raises(ImageError, match="image '': no such file"):
        open_image("")


@pytest.mark.parametrize(
    "url", [URL[:-3], URL[:90] + "!" + URL[91:], "data:image/png;base64", "data:,", "data:;base64,AAAA"]
)
def test_a_broken_data_url_is_refused(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(url)
    assert BASE64[:20] not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_data_url_is_capped_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "MAX_BYTES", len(PNG) - 1)
    with pytest.raises(ImageError, match=str(len(PNG) - 1)):
        open_image(URL)
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(ImageError, match=str(len(PNG) - 1)):
        open_image(URL + "A" * 3 * len(PNG))


def test_other_machines_are_asked_only_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch, processor) -> None:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(PNG)

    monkeypatch.setattr(image_sources, "urlopen", answer)
    url = "https://localhost/a.png"
    content = [{"type": "image", "url": url}, {"type": "text", "text": "what ?"}]
    chat = [{"role": "user", "content": content}]
    for call in (
        lambda: open_image(url),
        lambda: image_size(url),
        lambda: open_image("s3://bucket/a.png"),
        lambda: processor("what ?", url),
        lambda: processor.apply_chat_template(chat),
        lambda: processor.apply_chat_template(chat, tokenize=True),
    ):
        with pytest.raises(ImageError, match="nothing leaves the machine"):
            call()
    assert not asked
    expected = processor("what ?", PNG)["pixel_values"]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, allow_urls=True)
    torch.testing.assert_close(inputs["pixel_values"], expected)
    torch.testing.assert_close(processor("what ?", url, allow_urls=True)["pixel_values"], expected)
    assert open_image(url, allow_urls=True).size == (40, 24)
    assert asked == [url] * 3


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> PALLaVAProcessor:
    parts = save_parts(tmp_path_factory.mktemp("parts"))
    return PALLaVAProcessor(
        load_image_processor(parts["plip"]), AutoTokenizer.from_pretrained(parts["llm"]), "qwen_chat"
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "base64": BASE64},
        {"type": "image", "url": URL},
        {"type": "image", "path": URL},
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": torch.tensor(channels_first(PIXELS))},
    ],
)
def test_parts_of_messages(part: dict, processor: PALLaVAProcessor) -> None:
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "what ?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    torch.testing.assert_close(inputs["pixel_values"], processor("what ?", PNG)["pixel_values"])


def test_images_as_arrays(processor: PALLaVAProcessor) -> None:
    one = processor("what ?", PNG)["pixel_values"]
    two = processor("what ?", [PNG, PNG])
    for images in (np.stack([PIXELS] * 2), torch.tensor(np.stack([PIXELS] * 2)), [PIXELS, torch.tensor(PIXELS)]):
        found = processor("what ?", images)
        torch.testing.assert_close(found["pixel_values"], torch.cat([one, one]))
        torch.testing.assert_close(found["input_ids"], two["input_ids"])
    batch = processor(["what ?", "what ?"], np.stack([PIXELS] * 2))
    assert len(batch["tiles_per_image"]) == len(batch["input_ids"]) == 2
