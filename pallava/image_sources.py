"""Pictures as people hand them over: paths, bytes, URLs, arrays and tensors become what Pillow opens."""

import base64
import io
import os
import re
import stat
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname, urlopen

from PIL import Image

from pallava.errors import PallavaError

ImageSource: TypeAlias = Any
"""A path, the bytes of a file, an open binary file, a Pillow image, a URL or an array.

A URL is ``data:``, ``file:`` or, only if the caller allows it, ``http:`` or ``https:``. An array or tensor is H x W,
H x W x C or C x H x W with 1, 3 or 4 channels C, of uint8 or of floats from 0 to 1; where the channels could be first
or last, as in 3 x N x 3, they are first in a tensor and last in an array.
"""

MAX_BYTES = 1 << 28
"""Cap on the encoded picture of a URL: as many bytes as the largest picture of `open_image` has as RGB."""

_URL = re.compile(r"(data|file|\w+(?=://)):", re.IGNORECASE)
_CHANNELS = (1, 3, 4)
_TIMEOUT = 30  # seconds without an answer


class ImageError(PallavaError):
    """A picture that cannot be used: the message names it and the reason."""


def name_of(source: ImageSource) -> str:
    """Return how a message names a picture, without its content."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        kind = re.match(r"data:(\w+/[\w.+-]{1,40})[;,]", source, re.IGNORECASE)
        return f"in a data URL ({kind[1] if kind else 'of no type'}, {len(source)} characters)"
    if isinstance(source, str | os.PathLike):
        return f"'{source}'"
    if isinstance(source, bytes | bytearray):
        return f"in memory ({len(source)} bytes)"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"'{name}'" if isinstance(name, str | os.PathLike) else "in memory"


def is_remote(source: ImageSource) -> bool:
    """Return whether a picture is named by a URL of another machine."""
    scheme = _URL.match(source) if isinstance(source, str) else None
    return scheme is not None and scheme[1].lower() not in ("data", "file")


def check_is_local(source: ImageSource) -> None:
    """Raise ImageError if a picture is on another machine."""
    if is_remote(source):
        raise ImageError(
            f"cannot open image {name_of(source)}: nothing leaves the machine; download it, or call open_image or the "
            "processor with allow_urls=True"
        )


def to_readable(source: ImageSource, allow_urls: bool = False) -> Image.Image | str | os.PathLike[str] | BinaryIO:
    """Return an image itself, or the path or open file of it that Pillow can open."""
    if isinstance(source, str):
        source = _resolve_url(source, allow_urls)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError(f"cannot open image {name_of(source)}: it is empty (0 bytes)")
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return _check_file(source)
    if isinstance(source, Image.Image):
        return source
    if hasattr(source, "__array__"):
        return _from_array(source)
    if not hasattr(source, "read"):
        found = type(source).__name__
        raise ImageError(f"an image must be a path, a URL, bytes, an open file, a picture or an array, got a {found}")
    try:
        source.seek(0)
    except (AttributeError, OSError):  # a stream
        return io.BytesIO(source.read())
    return source


def _check_file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    status = os.stat(path)  # noqa: PTH116 - half the cost of Path(path).stat(), and millions are opened
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"cannot open image {name_of(path)}: it is a folder or a device, not a file")
    if not status.st_size:
        raise ImageError(f"cannot open image {name_of(path)}: the file is empty (0 bytes)")
    return path


def _resolve_url(source: str, allow_urls: bool) -> str | bytes:
    scheme = _URL.match(source)
    if scheme is None:
        return source
    if scheme[1].lower() == "data":
        return _decode_data_url(source)
    if scheme[1].lower() == "file":
        return url2pathname(urlsplit(source).path)
    if not allow_urls or scheme[1].lower() not in ("http", "https"):
        check_is_local(source)
    try:
        with urlopen(source, timeout=_TIMEOUT) as answer:
            content = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot fetch image {name_of(source)}: {error}") from None
    if len(content) > MAX_BYTES:
        raise ImageError(f"image {name_of(source)} must have at most {MAX_BYTES} bytes")
    return content


def _decode_data_url(url: str) -> bytes:
    if len(url) > MAX_BYTES // 3 * 4:
        raise ImageError(f"image {name_of(url)} must have at most {MAX_BYTES} bytes; give its path")
    head, comma, body = url.partition(",")
    if not comma:
        raise ImageError(
            f"image {name_of(url)} must have a comma before its content, as in 'data:image/png;base64,AAAA'"
        )
    content = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(content.translate(None, b" \t\r\n"), validate=True)
    except ValueError as error:
        raise ImageError(f"cannot open image {name_of(url)}: its base64 is damaged ({error})") from None


def _from_array(source: Any) -> Image.Image:
    import numpy as np  # a third of the time that tools/dataformat.py takes to start; most pictures need none

    is_tensor = hasattr(source, "detach")
    if is_tensor:
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    values = np.asarray(source)
    shape, channels_first = values.shape, values.ndim == 3 and values.shape[0] in _CHANNELS
    if channels_first and (is_tensor or shape[2] not in _CHANNELS):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in _CHANNELS or not values.size:
        sizes = " x ".join(map(str, shape))
        raise ImageError(f"an image array must be H x W, H x W x C or C x H x W with 1, 3 or 4 channels C, got {sizes}")
    if values.dtype.kind == "f":
        levels = np.rint(values * 255.0)
        if not (levels.min() >= 0 and levels.max() <= 255):
            found = f"{values.min():g} to {values.max():g}"
            raise ImageError(f"an image array of floats must hold values from 0 to 1, got {found}; scale it")
        values = levels.astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"an image array must be of uint8, or of floats from 0 to 1, got {values.dtype}")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
