import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pallava.data.clean.images import ImageFilter, _background_share, _check_image
from pallava.errors import PallavaError
from tests.tiny.records import item, pair, save_picture


def check(path: Path) -> dict:
    return _check_image(str(path))


def save_huge_png(path: Path) -> Path:
    """A file of a few bytes that says it is 30,000 x 30,000."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1 << 16))), (b"IEND", b"")]
    crc = [struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    body = (struct.pack(">I", len(data)) + name + data + check for (name, data), check in zip(chunks, crc, strict=True))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return path


def test_a_sound_picture(tmp_path):
    path = save_picture(tmp_path / "a.png", 0)
    score = check(path)
    assert score["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (score["width"], score["height"]) == (96, 80)
    assert len(score["perceptual_hash"]) == 16
    assert ImageFilter().decide(item(pair(0)), score).keep


def test_missing(tmp_path):
    assert check(tmp_path / "none.png") == {"problem": "missing"}


@pytest.mark.parametrize("name", ["\0.png", "\ud800.png", "n" * 300 + ".png", "a.png/b.png"])
def test_names_that_no_file_can_have(tmp_path, name):
    save_picture(tmp_path / "a.png", 0)
    each = item(pair(0, image=name), tmp_path)
    assert _check_image(f"{tmp_path}/{name}") == {"problem": "missing"}
    assert ImageFilter().item_key(each).encode().endswith(b"|missing")


def test_zero_bytes(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert check(tmp_path / "a.jpg") == {"problem": "unreadable"}


def test_no_picture(tmp_path):
    (tmp_path / "truncated.jpg").write_text("<html>not found</html>")
    assert check(tmp_path / "truncated.jpg") == {"problem": "unreadable"}


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_truncated(tmp_path, ending):
    path = save_picture(tmp_path / f"a.{ending}", 0, (400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problem = check(path)["problem"]
    assert problem in ("truncated", "unreadable") if ending in ("tif", "webp") else problem == "truncated"


def test_too_large_is_told_by_the_header(tmp_path):
    path = save_huge_png(tmp_path / "a.png")
    assert check(path) == {"problem": "too_large", "width": 30_000, "height": 30_000}


def glass(width: int, noise: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (240 + rng.integers(-noise, noise, (100, width, 3))).astype(np.uint8)


def tissue(width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(60, 200, (100, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (glass(100), 1.0),
        (np.zeros((100, 100, 3), np.uint8), 1.0),
        (np.full((100, 100, 3), (180, 150, 90), np.uint8), 1.0),
        (np.hstack([glass(90), tissue(10)]), 0.9),
        (tissue(100), 0.0),
    ],
    ids=["glass", "black", "even", "tenth", "tissue"],
)
def test_background(pixels, expected):
    assert _background_share(Image.fromarray(pixels)) == pytest.approx(expected, abs=0.02)


def test_a_few_cells_on_glass_are_kept(tmp_path):
    pixels = glass(100)
    for row in range(5, 100, 20):
        pixels[row : row + 3, 10:90:16] = (120, 60, 140)
        pixels[row : row + 3, 11:90:16] = (120, 60, 140)
        pixels[row : row + 3, 12:90:16] = (120, 60, 140)
    Image.fromarray(pixels).save(tmp_path / "cells.png")
    Image.fromarray(glass(100)).save(tmp_path / "glass.png")
    cells, empty = (check(tmp_path / f"{name}.png") for name in ("cells", "glass"))
    assert ImageFilter().decide(item(pair(0)), cells).keep
    assert ImageFilter().decide(item(pair(0)), empty).reason == "nearly_empty"


def test_processes_give_the_same_in_order(tmp_path):
    items = [item(pair(number), tmp_path) for number in range(20)]
    for number in range(0, 20, 2):
        save_picture(items[number].path, number)
    pooled = ImageFilter(num_workers=2)
    try:
        assert pooled.score(items) == ImageFilter().score(items)
    finally:
        pooled.close()


def test_a_file_that_is_replaced_has_another_key(tmp_path):
    each = item(pair(0), tmp_path)
    keys = {ImageFilter().item_key(each)}
    save_picture(each.path, 0)
    keys.add(ImageFilter().item_key(each))
    os.utime(each.path, (1, 1))
    keys.add(ImageFilter().item_key(each))
    assert len(keys) == 3


def test_a_share_of_two_is_refused():
    with pytest.raises(PallavaError, match="2"):
        ImageFilter(2)
