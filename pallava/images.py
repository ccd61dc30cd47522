"""Open a picture: one function for training, chat, evaluation and the tools.

Pictures come from the internet and from microscopes, so every file is treated as foreign: its size is read from the
header and compared with a cap before a pixel is decoded, and any failure becomes one sentence.
"""

import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, ClassVar

from PIL import Image, ImageFile

from pallava.image_formats import (
    complete_jpeg,
    declared_maximum,
    describe_tiff,
    essential_png,
    find_wrong_kind,
    is_unsigned_32,
    raw_mode,
)
from pallava.image_sources import ImageError, ImageSource, name_of, to_readable

MAX_PIXELS = 1024**3 // 12
"""Default cap in pixels: a quarter of a GiB as RGB, the size above which Pillow itself starts to warn."""

# An allow-list, since some of Pillow's readers start other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
_ORIENTATION_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0106
# From orientation 2 on.
_TRANSPOSE = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads few bits over 0 to 255, and not the transparent value
_STARTS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"} | dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_FRAMES, _START_OF_SCAN, _QUANTIZATION = (0xC0, 0xC1, 0xC2), 0xDA, 0xDB
_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_FRAME = struct.Struct(">BHHB")
_HEADER_BYTES = 4096


def open_image(source: ImageSource, *, max_pixels: int | None = MAX_PIXELS, allow_urls: bool = False) -> Image.Image:
    """Open a picture as a person sees it.

    The stored orientation is applied, transparency is laid on white, deep greyscale is scaled to 8 bits and not
    clipped. Of several frames the first is used. An image that this function has returned passes through unchanged.

    Args:
        source: A path, the bytes of a file, an open binary file (stays open), a Pillow image, an array, a tensor, or a
            URL; see `pallava.image_sources.ImageSource`.
        max_pixels: Maximum of width times height, checked before decoding; None for no maximum.
        allow_urls: Whether to fetch a picture that an ``http:`` or ``https:`` URL names.

    Returns:
        A decoded image of mode RGB without metadata.

    Raises:
        ImageError: The file is missing, empty, truncated, not a picture, too large, or would be shown wrongly.
    """
    if type(source) is Image.Image and source.mode == "RGB" and not source.info:
        return source
    with _opened(source, allow_urls) as image:
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError(
                f"image {name_of(source)} is too large: {width} x {height} = {width * height} pixels, "
                f"at most {max_pixels} are allowed; scale it down or raise max_pixels"
            )
        image = _decode(image)
        return _upright(_to_rgb(image), image)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Read (width, height) in pixels as stored, before any orientation, from the header alone.

    Raises:
        ImageError: As by `open_image`, but for damage behind the header.
    """
    if isinstance(source, str | Path) and (size := _plain_jpeg_size(source)):  # benchmarks/data_pipeline.py
        return size
    with _opened(source) as image:
        return image.size


def _plain_jpeg_size(path: str | Path) -> tuple[int, int] | None:
    """Read the size of a common JPEG, in a third of Pillow's time; anything unusual is left to Pillow."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would wait for ever
            return None
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of Path.open
            head = file.read(_HEADER_BYTES)
        return _size_in_header(head) if head.startswith(b"\xff\xd8") else None
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _size_in_header(head: bytes) -> tuple[int, int] | None:
    size, at = None, 2
    while head[at] == 0xFF:
        marker, end = head[at + 1], at + 2 + (head[at + 2] << 8 | head[at + 3])
        if marker == _START_OF_SCAN:
            return size if at + 4 <= end <= len(head) else None
        if marker in _FRAMES:
            precision, height, width, layers = _FRAME.unpack_from(head, at + 4)
            if size or precision != 8 or layers not in (1, 3, 4) or end != at + 10 + 3 * layers:
                return None
            size = (width, height) if width and height else None
        elif marker == _QUANTIZATION and ((end - at - 4) % 65 or max(head[at + 4 : end : 65], default=16) > 15):
            return None  # 16 bits, or malformed
        elif marker not in _TABLES or end < at + 4:
            return None
        at = end
    return None


@contextmanager
def _opened(source: ImageSource, allow_urls: bool = False) -> Iterator[Image.Image]:
    """Yield the undecoded image; whatever fails inside the block becomes an ImageError."""
    try:
        with _PillowLimitsOff():
            file = to_readable(source, allow_urls)
            with nullcontext(file) if isinstance(file, Image.Image) else _identify(file, source) as image:
                _check_kind(image, source)
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        name = name_of(source)
        hint = "; names must use /, not backslashes" if "\\" in name else ""
        raise ImageError(f"cannot open image {name}: no such file{hint}") from None
    except Exception as error:  # decoders of damaged data raise whatever they stumble over, KeyError included
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot read image {name_of(source)}: damaged or unsupported ({reason})") from error


def _identify(file: str | os.PathLike[str] | BinaryIO, source: ImageSource) -> Image.Image:
    """Open a file; where Pillow refuses what surrounds the pixels of a PNG, leave that out."""
    try:
        return Image.open(file, formats=_known_formats())
    except Exception as error:
        if getattr(error, "strerror", None):  # the system's, not the content's
            raise
        with Path(file).open("rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
            opened.seek(0)
            head = opened.read(12)
            known = next((name for start, name in _STARTS.items() if head.startswith(start)), "")
            with suppress(Exception):
                if known == "PNG":
                    return Image.open(essential_png(opened), formats=["PNG"])
            if known or isinstance(error, Image.UnidentifiedImageError):
                raise ImageError(f"cannot open image {name_of(source)}: {_explain(opened, head, known)}") from None
        raise


def _explain(file: BinaryIO, head: bytes, known: str) -> str:
    """Return what a file is that Pillow does not open; its beginning shows a web page or an archive."""
    with suppress(Exception):  # damaged tags raise anything
        if known == "TIFF":
            return f"{describe_tiff(file)} is not read by Pillow; save it as RGB of 8 bits"
    if known:
        return f"damaged or unsupported {known}; save it as RGB of 8 bits"
    found = f" (it starts with {head!r})" if head.isascii() and not head.isalnum() else ""
    return f"not a picture of a known format{found}; choose {', '.join(_FORMATS)}"


def _decode(image: Image.Image) -> Image.Image:
    """Decode the pixels; where Pillow refuses what surrounds those of a PNG or JPEG, leave that out."""
    steps, file = _GREY_STEPS.get(raw_mode(image)), getattr(image, "fp", None)
    try:
        image.load()
    except Exception:
        mend = {"PNG": essential_png, "JPEG": complete_jpeg, "MPO": complete_jpeg}.get(image.format or "")
        if mend is None or file is None or (sound := mend(file)) is None:
            raise
        image = Image.open(sound, formats=["PNG", "JPEG"])
        image.load()
    if steps and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= steps
    return image


@cache
def _known_formats() -> list[str]:
    Image.preinit()
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_kind(image: Image.Image, source: ImageSource) -> None:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"cannot read image {name_of(source)}: it is {width} x {height} pixels")
    if kind := find_wrong_kind(image):
        raise ImageError(f"image {name_of(source)} would be shown wrongly: it is {kind}; save it as RGB of 8 bits")


def _upright(rgb: Image.Image, stored: Image.Image) -> Image.Image:
    """Turn the RGB version of the stored image as its metadata ask for."""
    try:
        orientation = stored.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata must not cost a sound picture: viewers show it as it is stored
        return rgb
    if not isinstance(orientation, int) or not 2 <= orientation <= 8:
        return rgb
    return rgb.transpose(Image.Transpose[_TRANSPOSE[orientation - 2]])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), straight.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # an orientation left behind would be applied a second time
    return rgb


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale by the declared range or that of the storage type if the values fit it, else by their own."""
    import numpy as np  # a third of the time that tools/dataformat.py takes to start; most pictures need none

    stored = np.asarray(image).view(np.uint32) if is_unsigned_32(image) else np.asarray(image)
    values = np.nan_to_num(stored.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    limits = [1.0, 255.0, 65535.0] if image.mode == "F" else [declared_maximum(image) or 65535.0, 65535.0]
    if stored.dtype == np.uint32 and high > 2**24:
        limits.append(2.0**32)
    limit = next((limit for limit in limits if high <= limit), None)
    if low < 0 or limit is None:
        values, limit = values - low, max(high - low, 1e-12)
    grey = np.rint(values * (255.0 / limit)).astype(np.uint8)
    # Pillow inverts white-is-zero TIFFs of up to 8 bits itself, and leaves the deeper ones.
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == 0:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[stored == transparent] = 255
    return Image.fromarray(grey)


class _PillowLimitsOff:
    """Switches off Pillow's own size limit, and its leniency to truncated files, while an image is being opened.

    Both are globals of Pillow; the last thread to leave restores them.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _inside: ClassVar[int] = 0
    _saved: ClassVar[tuple[int | None, bool]] = (None, False)

    def __enter__(self) -> None:
        cls = _PillowLimitsOff
        with cls._lock:
            if not cls._inside:
                cls._saved = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
            cls._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        cls = _PillowLimitsOff
        with cls._lock:
            cls._inside -= 1
            if not cls._inside:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = cls._saved
