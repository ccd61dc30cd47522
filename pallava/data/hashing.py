"""The content of a file as one number."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - a path may be a string all the way
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
