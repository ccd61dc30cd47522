"""Kinds of JPEG, PNG and TIFF: right, or refused with the reason, by the header alone where that shows it."""

import io
import struct
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pallava.data.sources.files import RowDropped
from pallava.data.training_row import check_image
from pallava.images import ImageError, image_size, open_image
from tests.tiny.pictures import noise
from tests.tiny.tiffs import write_tiff

RGB = np.asarray(noise(80, 48))
RAMP = np.tile(np.arange(256, dtype=np.uint16), (16, 1))


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey(content: bytes) -> np.ndarray:
    return np.asarray(open_image(content))[..., 0].astype(int)


def refused(content: bytes, reason: str, path: Path) -> None:
    """Both by what reads the header alone, as `pallava data check` does, and by what trains."""
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match=reason):
            read(content)
    path.write_bytes(content)
    with pytest.raises(RowDropped, match=reason):
        check_image(path, 10**6, decode=False)


# JPEG


def jpegs() -> Iterator[tuple[Image.Image, dict]]:
    small = noise(40, 24)
    for mode, options in product(
        ("RGB", "L", "CMYK"),
        ({}, {"progressive": True}, {"restart_marker_blocks": 1}, {"progressive": True, "restart_marker_rows": 1}),
    ):
        yield small.convert(mode), options


@pytest.mark.parametrize("number", range(12))
def test_a_jpeg_that_is_cut_is_whole_or_refused(number: int) -> None:
    image, options = list(jpegs())[number]
    whole = saved(image, "JPEG", **options)
    expected = np.asarray(open_image(whole))
    np.testing.assert_array_equal(np.asarray(open_image(whole[:-2])), expected)
    np.testing.assert_array_equal(np.asarray(open_image(whole[:-2] + bytes(9))), expected)
    for end in range(300, len(whole)):
        try:
            found = np.asarray(open_image(whole[:end]))
        except ImageError:
            continue
        np.testing.assert_array_equal(found, expected, err_msg=str(len(whole) - end))


def test_a_jpeg_without_its_end_from_every_source(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(noise(40, 24), "JPEG", exif=exif)[:-2]
    (tmp_path / "a.jpg").write_bytes(content)
    with (tmp_path / "a.jpg").open("rb") as file, Image.open(tmp_path / "a.jpg") as lazy:
        for source in (tmp_path / "a.jpg", content, file, lazy):
            assert open_image(source).size == (24, 40)


# PNG


def chunk(name: bytes, content: bytes, is_sound: bool = True) -> bytes:
    checksum = zlib.crc32(name + content) ^ (not is_sound)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


BOMB = zlib.compress(bytes(80_000_000))
BESIDES = {
    "zTXt": chunk(b"zTXt", b"k\0\0" + BOMB),
    "iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "tEXt": chunk(b"tEXt", b"k\0" + bytes(70_000_000)),
    "checksum": chunk(b"tEXt", b"k\0v", is_sound=False),
    "own": chunk(b"abCd", b"x", is_sound=False),
    "profile": chunk(b"iCCP", b"k\0\7zz"),
    "gamma": chunk(b"gAMA", b""),
    "exif": chunk(b"eXIf", b"abc", is_sound=False),
}


@pytest.mark.parametrize("name", BESIDES)
def test_a_png_is_opened_whatever_is_beside_its_pixels(name: str) -> None:
    content = saved(Image.fromarray(RGB), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.fromarray(RGB), "PNG", exif=exif)
    for at in (33, len(content) - 12):
        strange = content[:at] + BESIDES[name] + content[at:]
        np.testing.assert_array_equal(np.asarray(open_image(strange)), RGB)
        assert image_size(strange) == (80, 48)
    if name != "exif":
        assert open_image(turned[:33] + BESIDES[name] + turned[33:]).size == (48, 80)


@pytest.mark.parametrize("seed", range(3))
def test_a_png_that_is_cut_is_whole_or_refused(seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((12, 12, 1), np.uint8))
    content = saved(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(np.asarray(open_image(content[:-12])), pixels)
    for end in range(8, len(content)):
        try:
            found = np.asarray(open_image(content[:end]))
        except ImageError:
            assert end < len(content) - 12
        else:
            np.testing.assert_array_equal(found, pixels, err_msg=str(end))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white(bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, min(2**bits, 8)).astype(int)
    rows = levels[None].repeat(2, 0)
    packed = np.unpackbits(rows.astype(">u2").view(np.uint8).reshape(2, -1, 2), axis=2)[..., 16 - bits :]
    lines = np.packbits(packed.reshape(2, -1), axis=1)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", len(levels), 2, bits, 0, 0, 0, 0))
    start = b"\x89PNG\r\n\x1a\n" + head
    for index, level in enumerate(levels):
        png = start + chunk(b"tRNS", struct.pack(">H", level)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        expected = np.round(levels * 255 / (2**bits - 1))
        expected[index] = 255
        assert np.abs(grey(png)[0] - expected).max() <= 1


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")
    assert open_image(b"\x89PNG\r\n\x1a\n" + head + data).size == (1, 1)
    refused(b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", bytes(6)) + data, "transparent colour", tmp_path / "a.png")


# TIFF


@pytest.mark.parametrize(
    ("bits", "tags", "expected"),
    [
        ([32] * 3, {"t339": [3] * 3}, r"3 samples of 32 bits \(float\)"),
        ([64], {"t339": [3]}, r"1 samples of 64 bits \(float\)"),
        ([32] * 3, {}, r"3 samples of 32 bits \(unsigned\)"),
        ([16, 16], {"t338": [2]}, "2 samples of 16 bits"),
        ([8] * 5, {"t262": [5], "t338": [1]}, "5 samples of 8 bits.*CMYK"),
        ([8], {"t259": [33005]}, "1 samples of 8 bits.*compression 33005"),
        ([8], {"t339": [2]}, r"8 bits \(signed\)"),
        ([16] * 3, {"t284": [2]}, "3 planes of 16 bits"),
        ([16] * 3, {"t281": [4095] * 3}, "3 samples of 16 bits"),
        ([8] * 3, {"t262": [6], "t530": [2, 2]}, "YCbCr"),
        ([8] * 4, {"t262": [5], "t332": [2]}, "CMYK"),
    ],
)
def test_a_tiff_that_is_refused_says_its_kind(bits: list, tags: dict, expected: str, tmp_path: Path) -> None:
    content = write_tiff(bytes(64 * sum(bits) // 8), (8, 8), bits, **tags)
    refused(content, f"TIFF of .*{expected}|TIFF of {expected}", tmp_path / "a.tif")


OME = '<OME><Image ID="Image:0"><Pixels SizeC="{}" SizeT="1" SizeX="80" SizeY="48"/></Image></OME>'
IMAGEJ = "ImageJ=1.54f\nimages={0}\nchannels={0}\nmode=composite\n"
TIFFFILE = '{{"shape": [{}, 48, 80]{}}}'


@pytest.mark.parametrize(
    "said",
    [OME.format(3), OME.format(2), IMAGEJ.format(3), TIFFFILE.format(3, ""), TIFFFILE.format(3, ', "axes": "CYX"')],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_on_pages_are_refused(said: str, dtype: type, tmp_path: Path) -> None:
    pages = [Image.fromarray(RGB[..., index].astype(dtype)) for index in range(3)]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], description=said)
    refused(content, "colours on several pages", tmp_path / "a.tif")


@pytest.mark.parametrize("said", [OME.format(3), TIFFFILE.format(3, ', "axes": "ZYX"'), TIFFFILE.format(48, "")])
def test_pages_of_another_kind_are_not(said: str) -> None:
    image = Image.fromarray(RGB if "SizeC" in said else RGB[..., 0])
    assert open_image(saved(image, "TIFF", description=said)).size == (80, 48)


def test_deep_grey_has_the_range_that_the_file_declares() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4081  # found, of 12 bits
    in_12 = Image.fromarray(RAMP * 16)
    for content in (
        saved(in_12, "TIFF", tiffinfo=tags),
        saved(in_12, "TIFF", description='<OME><Pixels SignificantBits="12"/></OME>'),
        saved(Image.fromarray(RAMP * 257), "TIFF", tiffinfo=tags),  # the values deny it
        write_tiff((RAMP * np.uint32(16843009)).astype("<u4").tobytes(), (256, 16), [32]),
        write_tiff((RAMP * 128).astype("<i2").tobytes(), (256, 16), [16], t339=[2]),
    ):
        assert np.abs(grey(content) - RAMP).max() <= 1


def test_premultiplied_grey() -> None:
    content = write_tiff(bytes([50, 100] * 64), (8, 8), [8, 8], t338=[1])
    assert np.abs(grey(content) - (50 + 155)).max() <= 1


def test_tiffs_are_as_tifffile_has_them_or_refused() -> None:
    """Every sample kind, byte order, compression and layout that tifffile writes."""
    tifffile = pytest.importorskip("tifffile")
    colours = RGB.astype(float) / 255
    num_right = num_refused = 0
    for code, is_planar, order, compression, tile, is_grey in product(
        ("u1", "u2", "u4", "i2", "f4", "f8"), (False, True), "<>", (None, "zlib"), (None, (16, 16)), (False, True)
    ):
        largest = 1 if code[0] == "f" else np.iinfo(code).max
        shown = colours[..., :1] if is_grey else colours
        stored = np.round(shown * largest) if largest > 1 else shown
        options = {"byteorder": order, "compression": compression, "tile": tile, "metadata": None}
        if not is_grey:
            options |= {"photometric": "rgb", "planarconfig": "separate" if is_planar else "contig"}
        values = np.moveaxis(stored, 2, 0) if is_planar and not is_grey else stored[..., 0] if is_grey else stored
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.ascontiguousarray(values.astype(code)), **options)
        expected = np.squeeze(tifffile.imread(io.BytesIO(buffer.getvalue()))).astype(float) / largest
        expected = np.moveaxis(expected, 0, 2) if is_planar and not is_grey else expected
        try:
            found = np.asarray(open_image(buffer.getvalue())) / 255
        except ImageError:
            num_refused += 1
            continue
        num_right += 1
        found = found[..., 0] if is_grey else found
        assert np.abs(found - expected).max() < 2.5 / 255, (code, is_planar, order, compression, tile, is_grey)
    assert num_right > 90
    assert num_refused > 40
