"""Pictures as people hand them over: paths, bytes, URLs, arrays and tensors become what Pillow opens."""

import base64
import io
import os
import re
import stat
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes
from urllib.request import urlopen

from PIL import Image

from pallava.errors import PallavaError

ImageSource: TypeAlias = Any
"""A path, the bytes of a file, an open binary file, a Pillow image, an array or tensor, or a URL.

An array is H x W, H x W x C or C x H x W with 1, 3 or 4 channels C, of uint8 or of floats from 0 to 1; where the
channels could be first or last, as in 3 x N x 3, they are first in a tensor and last in an array. A URL is ``data:``,
``file:`` or, only with `allow_urls`, ``http:`` or ``https:``.
"""

MAX_BYTES = 1 << 28
"""Cap on what a URL holds: as many bytes as the largest picture has as RGB."""

_URL = re.compile(r"(data|file|\w{2,}(?=://)):", re.IGNORECASE)
_CHANNELS = (1, 3, 4)
_TIMEOUT = 30  # seconds without an answer


class ImageError(PallavaError):
    """A picture that cannot be used: the message names it and the reason."""


def name_of(source: ImageSource) -> str:
    """Return how a message names a picture, without its content."""
    if isinstance(source, bytes | bytearray):
        return f"in memory ({len(source)} bytes)"
    if _scheme_of(source) == "data":
        return f"in a data URL ({len(source)} characters)"
    if not isinstance(source, str | os.PathLike):
        source = getattr(source, "filename", None) or getattr(source, "name", None)
    return "in memory" if source is None else f"'{source}'"


def check_is_local(source: ImageSource) -> None:
    """Raise ImageError if a picture is on another machine."""
    if _scheme_of(source) not in ("", "data", "file"):
        advice = "download it, or pass allow_urls=True to open_image or the processor"
        raise ImageError(f"cannot open image {name_of(source)}: nothing leaves the machine; {advice}")


def _scheme_of(source: ImageSource) -> str:
    found = _URL.match(source) if isinstance(source, str) else None
    return found[1].lower() if found else ""


def to_readable(source: ImageSource, allow_urls: bool = False) -> Image.Image | str | os.PathLike[str] | BinaryIO:
    """Return a picture itself, or the path or open file of it that Pillow can open."""
    if _scheme_of(source):
        source = read_url(source, allow_urls)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError(f"cannot open image {name_of(source)}: it is empty (0 bytes)")
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        status = os.stat(source)  # noqa: PTH116 - half the cost of Path.stat(), and millions are opened
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"cannot open image {name_of(source)}: it is a folder or a device, not a file")
        if not status.st_size:
            raise ImageError(f"cannot open image {name_of(source)}: the file is empty (0 bytes)")
        return source
    if isinstance(source, Image.Image) or hasattr(source, "read"):
        return source
    if hasattr(source, "__array__"):
        return _from_array(source)
    raise ImageError(f"an image must be a path, a URL, bytes, an open file or an array, got a {type(source).__name__}")


def read_url(url: str, allow_urls: bool = False) -> bytes:
    """Return what a URL holds, or raise ImageError."""
    if not allow_urls:
        check_is_local(url)
    try:
        if len(url) > 2 * MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes; give its path")
        if _scheme_of(url) != "data":
            with urlopen(url, timeout=_TIMEOUT) as answer:
                content = answer.read(MAX_BYTES + 1)
        else:
            head, _, body = url.partition(",")
            content = unquote_to_bytes(body)
            if head.lower().endswith(";base64"):
                content = base64.b64decode(content.translate(None, b" \t\r\n"), validate=True)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read image {name_of(url)}: {error}") from None
    if len(content) > MAX_BYTES:
        raise ImageError(f"image {name_of(url)} must have at most {MAX_BYTES} bytes; give its path")
    return content


def _from_array(source: Any) -> Image.Image:
    import numpy as np  # a third of the time that tools/dataformat.py takes to start; most pictures need none

    is_tensor = hasattr(source, "detach")
    if is_tensor:
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
    values = np.asarray(source)
    found = f"{' x '.join(map(str, values.shape))} of {values.dtype}"
    if values.ndim == 3 and values.shape[0] in _CHANNELS and (is_tensor or values.shape[2] not in _CHANNELS):
        values = np.moveaxis(values, 0, 2)
    if values.dtype.kind == "f" and values.size:
        found += f" from {values.min():g} to {values.max():g}"
        levels = np.rint(values * 255.0)
        values = levels.astype(np.uint8) if levels.min() >= 0 and levels.max() <= 255 else values
    is_picture = values.size and (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in _CHANNELS))
    if values.dtype != np.uint8 or not is_picture:
        expected = "H x W, H x W x C or C x H x W with 1, 3 or 4 channels C, of uint8 or of floats from 0 to 1"
        raise ImageError(f"an image array must be {expected}, got {found}")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))
