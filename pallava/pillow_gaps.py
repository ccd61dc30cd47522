"""Where Pillow reads a file wrongly, cannot say why it does not, or refuses a sound one."""

import io
import re
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin, TiffTags

_BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES = 258, 259, 262, 270, 277
_MAXIMUM, _PLANES, _INKS, _EXTRA, _KIND, _SUBSAMPLING = 281, 284, 332, 338, 339, 530
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}
_RGB, _CMYK, _YCBCR = 2, 5, 6
# Of OME, ImageJ and tifffile: the number of channels of the whole picture, of which a page may hold one.
_CHANNELS = re.compile(r"SizeC=.(\d+)|^channels=(\d+)|\"shape\": \[([2-4]), \d+, \d+\](?!, \"axes\": \"[^C])", re.M)
_SIGNIFICANT = re.compile(r"SignificantBits=.(\d+)")

# Chunks that change pixels; IEND is written anew.
_ESSENTIAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_XMP = b"iTXtXML:com.adobe.xmp\0\0"  # not compressed; it may hold the orientation
_END = b"\0\0\0\0IEND\xaeB`\x82"
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xda-\xfe])")  # not a stuffed byte, nor a restart inside of a scan
_NOISE = b"\xaa\x55\x36" * 40
_TAILS = (b"", _NOISE, _NOISE + b"".join(b"\xff%c" % marker + _NOISE for marker in range(0xD0, 0xD8)))


def find_wrong_kind(image: Image.Image) -> str:
    """Return why Pillow would show other pixels than an opened file holds; an empty text if it reads it rightly."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return _wrong_tiff(tags, image)
    if image.format == "PNG" and raw_mode(image) == "RGB;16B" and "transparency" in image.info:
        return "a transparent colour in 16 bits"
    return ""


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of a PNG are stored, such as "L;4"; an empty text once it is decoded."""
    tiles = getattr(image, "tile", ())
    return str(tiles[0][3]) if tiles else ""


def _wrong_tiff(tags: Mapping[int, Any], image: Image.Image) -> str:
    bits, photometric = max(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC, 0)
    samples, kind = max(tags.get(_SAMPLES, 1), len(image.getbands())), max(tags.get(_KIND, (1,)))
    is_raw, is_swapped = tags.get(_COMPRESSION, 1) == 1, getattr(tags, "prefix", b"II") == b"MM"
    is_apart = tags.get(_PLANES, 1) == 2 and samples > 1
    said = _CHANNELS.search(str(tags.get(_DESCRIPTION, "")))
    num_channels = int(next(filter(None, said.groups()))) if said else 1
    reasons = {
        f"{num_channels} channels on pages of their own": num_channels > samples,
        f"planes of {bits} bits": is_apart and (photometric not in (_RGB, _CMYK) or (is_raw and bits != 8)),
        "signed numbers of 8 bits": kind == 2 and bits == 8,
        "compressed big-endian numbers with a sign or of 32 bits": is_swapped
        and not is_raw
        and image.mode in ("I", "F"),
        "YCbCr with fewer colours than pixels": photometric == _YCBCR
        and is_raw
        and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1),
        "inks other than CMYK": photometric == _CMYK and tags.get(_INKS, 1) != 1,
        "colours of fewer bits than stored": bits == 16 and samples > 1 and declared_maximum(image) < 65535,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), "")


def declared_maximum(image: Image.Image) -> int:
    """Return the largest value that a sample may have by the bits that a TIFF declares, or else 0.

    The largest value that it declares counts as the bits that this needs, since some write the darkest picture's own.
    """
    tags = getattr(image, "tag_v2", {})
    stored = max(tags.get(_BITS, (16,))) - (max(tags.get(_KIND, (1,))) == 2)
    maximum = tags.get(_MAXIMUM, 0)
    largest = max(maximum, default=0) if isinstance(maximum, tuple) else maximum
    significant = _SIGNIFICANT.search(str(tags.get(_DESCRIPTION, "")))
    declared = (int(largest).bit_length(), int(significant[1]) if significant else 0)
    bits = [number for number in (stored if stored <= 16 else 0, *declared) if number]
    return (1 << max(8, min(bits))) - 1 if bits else 0


def is_unsigned_32(image: Image.Image) -> bool:
    """Return whether Pillow read numbers without a sign as such with one."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and max(tags.get(_BITS, (1,))) == 32 and max(tags.get(_KIND, (1,))) == 1


def describe_tiff(file: BinaryIO) -> str:
    """Return samples, bits, colours and compression of the first page of a TIFF."""
    file.seek(0)
    head = file.read(8)
    head += file.read(8) if b"+" in head[2:4] else b""  # BigTIFF
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    bits, kinds = tags.get(_BITS, (1,)), {_KINDS.get(kind, "other") for kind in tags.get(_KIND, (1,))}
    names = [_value_name(tag, tags.get(tag, 1)) for tag in (_PHOTOMETRIC, _COMPRESSION)]
    extra = f", extra samples {tags[_EXTRA]}" if _EXTRA in tags else ""
    samples = f"{tags.get(_SAMPLES, 1)} x {max(bits)} bits"
    return f"{samples} ({' and '.join(sorted(kinds))}{extra}), photometric {names[0]}, compression {names[1]}"


def _value_name(tag: int, value: Any) -> str:
    return next((name for name, number in TiffTags.lookup(tag).enum.items() if number == value), str(value))


def essential_png(file: BinaryIO) -> BinaryIO:
    """Return a PNG with its picture alone: no text, profile or time, whatever that weighs or lacks."""
    file.seek(0)
    content = file.read()
    kept, at = [content[:8]], 8
    while at + 8 < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name, body = content[at + 4 : at + 8], content[at + 4 : end - 4]
        is_orientation = name == b"eXIf" or body.startswith(_XMP)
        is_sound = zlib.crc32(body).to_bytes(4, "big") == content[end - 4 : end]
        if name in _ESSENTIAL or (is_orientation and is_sound):
            kept.append(content[at:end].ljust(end - at if name == b"IDAT" and end - len(content) <= 4 else 0, b"\0"))
        at = end
    return io.BytesIO(b"".join([*kept, _END]))


def complete_jpeg(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG with an end marker if only that is missing, and None if pixels are missing.

    What follows a complete picture changes none of its pixels; where some are missing, it is taken for them.
    """
    file.seek(0)
    content = file.read()
    if not _sends_everything(content):
        return None
    tries = [content + tail + b"\xff\xd9" for tail in _TAILS]
    pictures = []
    for each in tries:
        with Image.open(io.BytesIO(each), formats=["JPEG"]) as image:
            pictures.append(image.tobytes())
    return io.BytesIO(tries[0]) if pictures.count(pictures[0]) == len(pictures) else None


def _sends_everything(content: bytes) -> bool:
    """Return whether the scans of a JPEG hold all bits of all coefficients; those of a progressive one hold some."""
    num_layers, is_progressive, at = 0, False, 2
    sent: set[tuple[int, int]] = set()
    while match := _MARKER.search(content, at):
        marker, start = match[1][0], match.end() + 2
        segment = content[start : match.end() + int.from_bytes(content[match.end() : start], "big")]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            num_layers, is_progressive = segment[5], marker & 3 == 2
        elif marker == 0xDA:
            layers, (first, last, bits) = segment[1 : 1 + 2 * segment[0] : 2], segment[1 + 2 * segment[0] :][:3]
            if not is_progressive:
                first, last, bits = 0, 63, 0
            if not bits & 15:
                sent |= {(layer, index) for layer in layers for index in range(first, last + 1)}
        at = start + len(segment)
    return num_layers > 0 and len(sent) == 64 * num_layers
