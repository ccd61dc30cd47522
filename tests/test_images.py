"""Pictures of every kind come out as RGB, as a person sees them; what cannot be opened is one sentence."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def two_by_one(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = GREEN) -> Image.Image:
    image = Image.new("RGB", (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> list:
    assert image.mode == "RGB"
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def huge_png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + b"\0" * 8


def test_every_source_gives_the_same(tmp_path: Path):
    data = saved(two_by_one())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        images = [open_image(source) for source in (path, str(path), data, file, two_by_one(), Image.open(path))]
        assert not file.closed
    assert all(pixels(image) == [RED, GREEN] for image in images)


@pytest.mark.parametrize(
    ("orientation", "size", "first_row"),
    [
        (1, (2, 1), [RED, GREEN]),
        (2, (2, 1), [GREEN, RED]),
        (3, (2, 1), [GREEN, RED]),
        (4, (2, 1), [RED, GREEN]),
        (5, (1, 2), [RED, GREEN]),
        (6, (1, 2), [RED, GREEN]),
        (7, (1, 2), [GREEN, RED]),
        (8, (1, 2), [GREEN, RED]),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(format: str, orientation: int, size: tuple[int, int], first_row: list):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = open_image(saved(two_by_one(), format, exif=exif, **options))
    assert image.size == size
    assert pixels(image) == first_row
    assert open_image(image) is image


def test_jpeg_orientation_and_stored_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (40, 10), RED), "JPEG", exif=exif)
    assert open_image(data).size == (10, 40)
    assert image_size(data) == (40, 10)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_nothing(exif: bytes):
    data = saved(two_by_one(), exif=exif)
    assert pixels(open_image(data)) == [RED, GREEN]


def test_transparency_is_laid_on_white():
    rgba = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    assert pixels(open_image(saved(rgba))) == [RED, WHITE, (127, 127, 127)]
    grey = Image.new("LA", (2, 1), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    assert pixels(open_image(saved(grey))) == [(10, 10, 10), WHITE]
    assert pixels(open_image(grey)) == [(10, 10, 10), WHITE]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_with_and_without_transparency(transparency):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(open_image(saved(image))) == [RED, BLUE]
    assert pixels(open_image(saved(image, transparency=transparency))) == [RED, WHITE]


def test_transparent_colour_of_rgb_png():
    assert pixels(open_image(saved(two_by_one(), transparency=GREEN))) == [RED, WHITE]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str):
    image = Image.fromarray(np.array([[0, 25650, 65535]], dtype=np.uint16))
    assert [pixel[0] for pixel in pixels(open_image(saved(image, format)))] == [0, 100, 255]
    assert [pixel[0] for pixel in pixels(open_image(saved(image.convert("I"), "TIFF")))] == [0, 100, 255]


def test_other_endian_16_bit():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535))
    assert [pixel[0] for pixel in pixels(open_image(image))] == [1, 255]


def test_16_bit_white_is_zero():
    image = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    data = saved(image, "TIFF")
    entry = struct.pack("<HHI", 262, 3, 1)  # photometric interpretation, a short, one value
    assert data.count(entry) == 1
    at = data.index(entry) + len(entry)
    data = data[:at] + b"\0\0" + data[at + 2 :]
    assert [pixel[0] for pixel in pixels(open_image(data))] == [255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, float("nan"), 65535.0], [0, 0, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1e6, 2e6], [0, 127, 255]),
    ],
)
def test_float_tiff_is_scaled_by_its_range(values: list, expected: list):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert [pixel[0] for pixel in pixels(open_image(saved(image, "TIFF")))] == expected


def test_cmyk_one_bit_and_grey():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for format in ("TIFF", "JPEG"):
        red, green, blue = pixels(open_image(saved(cmyk, format)))[0]
        assert red > 240
        assert max(green, blue) < 15
    one_bit = Image.new("1", (2, 1), 1)
    one_bit.putpixel((1, 0), 0)
    assert pixels(open_image(saved(one_bit))) == [WHITE, (0, 0, 0)]
    assert pixels(open_image(saved(Image.new("L", (1, 1), 7)))) == [(7, 7, 7)]


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
def test_first_frame_of_many(format: str, tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED, GREEN)]
    path = tmp_path / "frames"
    path.write_bytes(saved(frames[0], format, save_all=True, append_images=frames[1:]))
    red, _, blue = pixels(open_image(path))[0]
    assert blue > 240
    assert red < 15
    path.unlink()


def test_cap_is_checked_before_decoding():
    with pytest.raises(ImageError, match=r"100000 x 100000 = 10000000000 pixels, at most \d+ are allowed"):
        open_image(huge_png_header(100000, 100000))
    data = saved(Image.new("RGB", (10, 10)))
    assert open_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="at most 99 "):
        open_image(data, max_pixels=99)


def test_pillows_own_limit_stays_inside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(Image.new("RGB", (10, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data, max_pixels=None).size == (10, 10)
        assert image_size(huge_png_header(100000, 100000)) == (100000, 100000)
    with pytest.raises(ImageError, match="damaged"):
        open_image(saved(Image.effect_noise((64, 64), 90))[:-400])
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
def test_truncated_file_is_an_error(format: str, tmp_path: Path):
    data = saved(Image.effect_noise((64, 64), 90).convert("RGB"), format)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match=r"'.*cut': damaged or unsupported"):
        open_image(path)


def test_missing_empty_foreign_and_folder(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, reason in [
        ("none.png", "no such file"),
        ("folder\\none.png", "no such file.*backslashes"),
        ("empty.png", r"empty \(0 bytes\)"),
        ("page.png", r"not a picture of a known format \(it starts with b'<html>not fo'\)"),
        ("figure.eps", "not a picture of a known format"),
        (".", "folder"),
        ("a\0b.png", "null"),
    ]:
        for read in (open_image, image_size):
            with pytest.raises(ImageError, match=reason) as caught:
                read(tmp_path / name)
            assert isinstance(caught.value, PallavaError)
            assert str(tmp_path / name) in str(caught.value)
    for data in (b"", b"nothing of the kind"):
        with pytest.raises(ImageError, match=f"in memory \\({len(data)} bytes\\)"):
            open_image(data)


@pytest.mark.parametrize("start", [b"\x01", b"\x10", b""])
def test_header_that_pillow_refuses_has_no_size(start: bytes, tmp_path: Path):
    """Quantization tables that are cut: what would stop a training is found by the header alone."""
    data = saved(Image.effect_noise((64, 48), 90), "JPEG")
    at = data.index(b"\xff\xdb")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:at] + b"\xff\xdb" + (3 + len(start)).to_bytes(2, "big") + start + b"\0" + data[end:])
    for read in (image_size, open_image):
        with pytest.raises(ImageError, match="JPEG"):
            read(path)


def test_size_needs_no_pixels():
    data = saved(Image.effect_noise((64, 48), 90))
    assert image_size(data[:200]) == (64, 48)


def test_many_threads_leave_pillows_limit_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = saved(Image.new("RGB", (20, 20)))
    with ThreadPoolExecutor(8) as pool:
        assert all(image.size == (20, 20) for image in pool.map(open_image, [data] * 200))
    assert Image.MAX_IMAGE_PIXELS == 10


def _jpegs():
    image = Image.effect_noise((37, 23), 60)
    exif = Image.Exif()
    exif[0x010E] = "x" * 9000
    yield image, {}
    yield image.convert("RGB"), {"progressive": True, "optimize": True}
    yield image.convert("RGB"), {"exif": exif, "icc_profile": b"p" * 70_000, "comment": b"c" * 300}
    yield image.convert("CMYK"), {"quality": 95, "subsampling": 0, "restart_marker_rows": 1}


@pytest.mark.parametrize("number", range(4))
def test_size_of_a_jpeg_is_that_of_pillow_wherever_it_is_cut(tmp_path, number):
    image, options = list(_jpegs())[number]
    path = tmp_path / "a.jpg"
    image.save(path, "JPEG", **options)
    content = path.read_bytes()
    assert image_size(path) == (37, 23)
    for end in sorted({*range(1, 700, 3), *range(700, len(content), 997)}):
        path.write_bytes(content[:end])
        try:
            with Image.open(path) as opened:
                expected = opened.size
        except Exception:
            with pytest.raises(ImageError):
                image_size(path)
        else:
            assert image_size(path) == expected, end
