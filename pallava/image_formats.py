"""What Pillow does not say of JPEG, PNG and TIFF: which it would show wrongly, and which are intact though it stops."""

import io
import re
import zlib
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin, TiffTags

_BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES, _MAXIMUM = 258, 259, 262, 270, 277, 281
_PLANES, _INKS, _KIND, _SUBSAMPLING = 284, 332, 339, 530
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}
_RGB, _CMYK, _YCBCR = 2, 5, 6
# OME, ImageJ and tifffile: the number of channels of the whole picture, of which a page may hold one.
_CHANNELS = re.compile(r"SizeC=.(\d+)|^channels=(\d+)|\"shape\": \[([2-4]), \d+, \d+\](?!, \"axes\": \"[^C])", re.M)
_SIGNIFICANT = re.compile(r"SignificantBits=.(\d+)")
# Chunks of pixels and of orientation; XMP only if it is not compressed.
_PNG_CHUNKS = ((b"IHDR", b"PLTE", b"tRNS", b"IDAT"), (b"eXIf", b"iTXtXML:com.adobe.xmp\0\0"))
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xda-\xfe])")  # not a stuffed byte, nor a restart inside of a scan
_NOISE = b"\xaa\x55\x36" * 40
_RESTARTS = [b"".join(b"\xff%c" % (0xD0 + (first + i) % 8) + _NOISE for i in range(8)) for first in range(8)]


def find_wrong_kind(image: Image.Image) -> str:
    """Return which kind an opened picture is of if Pillow would show other pixels than it holds, else an empty text."""
    if raw_mode(image) == "RGB;16B" and "transparency" in image.info:
        return "a PNG with a transparent colour of 16 bits"
    if (tags := getattr(image, "tag_v2", None)) is None:
        return ""
    bits, kind, photometric = _largest(tags, _BITS), _largest(tags, _KIND), tags.get(_PHOTOMETRIC)
    samples, is_raw = max(tags.get(_SAMPLES, 1), len(image.getbands())), tags.get(_COMPRESSION, 1) == 1
    channels = _CHANNELS.search(str(tags.get(_DESCRIPTION)))
    if channels and max(int(number or 0) for number in channels.groups()) > samples:
        return "a TIFF with its colours on several pages"
    is_wrong = (
        (tags.get(_PLANES) == 2 and samples > 1 and (photometric not in (_RGB, _CMYK) or (is_raw and bits != 8)))
        or (kind == 2 and bits == 8)
        or (image.mode in ("I", "F") and tags.prefix == b"MM" and not is_raw)  # its bytes are swapped twice
        or (photometric == _YCBCR and is_raw and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1))
        or (photometric == _CMYK and tags.get(_INKS, 1) != 1)
        or (samples > 1 and bits == 16 and declared_maximum(image) < 65535)
    )
    return _describe(tags) if is_wrong else ""


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of a PNG are stored, such as "L;4"; an empty text once it is decoded."""
    tiles = getattr(image, "tile", ())
    return str(tiles[0][3]) if tiles and image.format == "PNG" else ""


def declared_maximum(image: Image.Image) -> int:
    """Return the largest value of the bits that a TIFF declares or stores for a sample; 0 for over 16 undeclared ones.

    A declared largest value counts as the bits that it needs, since some programs declare the one that they found.
    """
    tags = getattr(image, "tag_v2", {})
    stored = _largest(tags, _BITS, 16) - (_largest(tags, _KIND) == 2)
    significant = _SIGNIFICANT.search(str(tags.get(_DESCRIPTION)))
    declared = (int(_largest(tags, _MAXIMUM, 0)).bit_length(), int(significant[1]) if significant else 0)
    bits = min(filter(None, (stored if stored <= 16 else 0, *declared)), default=0)
    return (1 << max(8, bits)) - 1 if bits else 0


def is_unsigned_32(image: Image.Image) -> bool:
    """Return whether Pillow reads numbers without a sign as such with one."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and (_largest(tags, _BITS), _largest(tags, _KIND)) == (32, 1)


def _largest(tags: Any, tag: int, default: int = 1) -> Any:
    value = tags.get(tag, default)
    return max(value, default=default) if isinstance(value, tuple) else value


def describe_tiff(file: BinaryIO) -> str:
    """Return samples, bits, colours and compression of the first page of a TIFF, also of one that Pillow refuses."""
    file.seek(0)
    head = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if b"+" in head else b""))  # BigTIFF
    file.seek(tags.next)
    tags.load(file)
    return _describe(tags)


def _describe(tags: Any) -> str:
    kind, planes = _KINDS.get(_largest(tags, _KIND), "other"), "planes" if tags.get(_PLANES) == 2 else "samples"
    colours, compression = (
        next((name for name, number in TiffTags.lookup(tag).enum.items() if number == tags.get(tag, 1)), tags.get(tag))
        for tag in (_PHOTOMETRIC, _COMPRESSION)
    )
    number = f"{tags.get(_SAMPLES, 1)} {planes} of {_largest(tags, _BITS)} bits ({kind})"
    return f"a TIFF of {number}, photometric {colours}, compression {compression}"


def essential_png(file: BinaryIO) -> BinaryIO:
    """Return a PNG with its pixels and orientation alone: no text, profile or time, whatever that weighs or lacks."""
    file.seek(0)
    content, at = file.read(), 8
    kept = [content[:at]]
    while at + 8 < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : end - 4]
        is_intact = zlib.crc32(body).to_bytes(4, "big") == content[end - 4 : end]
        if body.startswith(_PNG_CHUNKS[0]) or (body.startswith(_PNG_CHUNKS[1]) and is_intact):
            kept.append(content[at:end])
        at = end
    return io.BytesIO(b"".join(kept) + _PNG_END * (at <= len(content)))


def complete_jpeg(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG with an end marker if only that is missing, and None if pixels are missing.

    What follows a complete picture changes none of its pixels; where some are missing, it is taken for them.
    """
    file.seek(0)
    content = file.read()
    ends = [tail + b"\xff\xd9" for tail in (b"", _NOISE, *_RESTARTS)] if _has_all_scans(content) else []
    pictures = (Image.open(io.BytesIO(content + end), formats=["JPEG"]).tobytes() for end in ends)
    first = next(pictures, None)
    return None if first is None or any(each != first for each in pictures) else io.BytesIO(content + ends[0])


def _has_all_scans(content: bytes) -> bool:
    """Return whether the scans of a JPEG hold all bits of all coefficients; of a progressive one each holds some."""
    num_layers, is_progressive, sent, at = 0, False, set[tuple[int, int]](), 2
    while match := _MARKER.search(content, at):
        marker, start = match[1][0], match.end() + 2
        at = match.end() + int.from_bytes(content[match.end() : start], "big")
        body = content[start:at]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            num_layers, is_progressive = body[5], marker & 3 == 2
        elif marker == 0xDA:
            first, last, bits = body[-3:] if is_progressive else (0, 63, 0)
            sent |= {(layer, index) for layer in body[1:-3:2] for index in range(first, last + 1) if not bits & 15}
    return num_layers > 0 and len(sent) == 64 * num_layers
