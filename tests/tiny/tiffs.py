"""TIFF files of kinds that Pillow does not write, byte by byte."""

import struct
from collections.abc import Sequence


def write_tiff(content: bytes, size: tuple[int, int], bits: Sequence[int], **tags: Sequence[int] | bytes) -> bytes:
    """Return an uncompressed TIFF of one strip; further tags are named ``t`` and their number."""
    values: dict[int, Sequence[int] | bytes] = {
        256: [size[0]], 257: [size[1]], 258: bits, 259: [1], 262: [1 if len(bits) < 3 else 2], 277: [len(bits)],
        278: [size[1]], 279: [len(content)], 273: [0], **{int(name[1:]): value for name, value in tags.items()},
    }  # fmt: skip
    start = 8 + 2 + 12 * len(values) + 4
    entries, tail = [], b""
    first = start + sum(len(value) * 4 + 4 for value in values.values())
    for tag, value in sorted((values | {273: [first]}).items()):
        code, letter = (2, "s") if isinstance(value, bytes) else (4, "I") if tag in (273, 279) else (3, "H")
        packed = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}{letter}", *value)
        if len(packed) > 4:
            place, tail = struct.pack("<I", start + len(tail)), tail + packed
            packed = place
        entries.append(struct.pack("<HHI", tag, code, len(value)) + packed.ljust(4, b"\0"))
    head = b"II" + struct.pack("<HIH", 42, 8, len(values)) + b"".join(entries) + bytes(4) + tail
    return head.ljust(first, b"\0") + content
