"""Open a picture: one function for training, chat, evaluation and the tools.

Pictures come from the internet and from microscopes, so every file is treated as foreign: its size is read from the
header and compared with a cap before a pixel is decoded, and any failure becomes one sentence.
"""

import io
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeAlias

from PIL import Image, ImageFile

from pallava.errors import PallavaError

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image

MAX_PIXELS = 1024**3 // 12
"""Default cap in pixels: a quarter of a GiB as RGB, the size above which Pillow itself starts to warn."""

# An allow-list, since some of Pillow's readers start other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
_ORIENTATION_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0106
# From orientation 2 on.
_TRANSPOSE = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_FRAMES, _START_OF_SCAN = (0xC0, 0xC1, 0xC2), 0xDA
_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_FRAME = struct.Struct(">BHHB")
_HEADER_BYTES = 4096


class ImageError(PallavaError):
    """A picture that cannot be used: the message names it and the reason."""


def open_image(source: ImageSource, *, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Open a picture as a person sees it.

    The stored orientation is applied, transparency is laid on white, deep greyscale is scaled to 8 bits and not
    clipped. Of several frames the first is used. An image that this function has returned passes through unchanged.

    Args:
        source: A path, the bytes of a file, an open binary file (stays open), or a Pillow image.
        max_pixels: Maximum of width times height, checked before decoding; None for no maximum.

    Returns:
        A decoded image of mode RGB without metadata.

    Raises:
        ImageError: The file is missing, empty, truncated, not a picture, or too large.
    """
    if type(source) is Image.Image and source.mode == "RGB" and not source.info:
        return source
    with _opened(source) as image:
        _check_size(image, source, max_pixels)
        image.load()
        return _upright(_to_rgb(image), image)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Read (width, height) in pixels as stored, before any orientation, from the header alone.

    Raises:
        ImageError: The file is missing, empty or not a picture; damage behind the header is not detected.
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
        elif marker not in _TABLES or end < at + 4:
            return None
        at = end
    return None


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    """Yield the undecoded image; whatever fails inside the block becomes an ImageError."""
    try:
        with _PillowLimitsOff():
            if isinstance(source, Image.Image):
                yield source
                return
            with Image.open(_readable(source), formats=_known_formats()) as image:
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"cannot open image {_name(source)}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"cannot open image {_name(source)}: {_foreign(source)}") from None
    except Exception as error:  # decoders of damaged data raise whatever they stumble over, KeyError included
        reason = str(error) or type(error).__name__
        raise ImageError(f"cannot read image {_name(source)}: damaged or unsupported ({reason})") from error


def _readable(source: str | Path | bytes | BinaryIO) -> str | Path | BinaryIO:
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"cannot open image {_name(source)}: it is empty (0 bytes)")
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        return source
    status = os.stat(source)  # noqa: PTH116 - half the cost of Path(source).stat(), and millions are opened
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"cannot open image {_name(source)}: it is a folder or a device, not a file")
    if not status.st_size:
        raise ImageError(f"cannot open image {_name(source)}: the file is empty (0 bytes)")
    return source


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return f"'{source}'"
    if isinstance(source, bytes):
        return f"in memory ({len(source)} bytes)"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"'{name}'" if name else "in memory"


def _foreign(source: ImageSource) -> str:
    """Return what an unknown file starts with, which shows a web page or an archive."""
    head = source[:12] if isinstance(source, bytes) else b""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            head = file.read(12)
    found = f" (it starts with {head!r})" if head else ""
    return f"not a picture of a known format{found}; choose {', '.join(_FORMATS)}"


@cache
def _known_formats() -> list[str]:
    Image.preinit()
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image, source: ImageSource, max_pixels: int | None) -> None:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"cannot read image {_name(source)}: it is {width} x {height} pixels")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"image {_name(source)} is too large: {width} x {height} = {width * height} pixels, "
            f"at most {max_pixels} are allowed; scale it down or raise max_pixels"
        )


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
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # an orientation left behind would be applied a second time
    return rgb


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale by the range of the storage type if the values fit it, else by their own minimum and maximum."""
    import numpy as np  # a third of the time that tools/dataformat.py takes to start; most pictures need none

    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        values, high = values - low, max(high - low, 1e-12)
    elif image.mode != "F":
        high = 65535.0
    else:
        high = next(limit for limit in (1.0, 255.0, 65535.0) if high <= limit)
    grey = np.rint(values * (255.0 / high)).astype(np.uint8)
    # Pillow inverts white-is-zero TIFFs of up to 8 bits itself, and leaves the deeper ones.
    is_white_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == 0
    return Image.fromarray(255 - grey if is_white_zero else grey)


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
