"""Hashes of bytes, texts, JSON values, files and folders."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - a path may be a string all the way
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys; other objects count as their `str`."""
    return hash_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def hash_text(*parts: str) -> str:
    """Return a key of 32 hexadecimal digits (BLAKE2b) for a sequence of texts."""
    return _blake2b(parts, 16).hex()


def short_hash(*parts: str | int) -> bytes:
    """Return 8 bytes (BLAKE2b) for a sequence of texts: for sets of millions, and for reproducible random draws."""
    return _blake2b(map(str, parts), 8)


def hash_folder(folder: str | Path, patterns: Iterable[str] = ("*",)) -> str:
    """Return a key of 32 hexadecimal digits for names and contents of a folder's files, at any depth.

    Raises:
        OSError: A file cannot be read.
    """
    root = Path(folder)
    paths = sorted({path for pattern in patterns for path in root.rglob(pattern) if path.is_file()})
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(hash_file, paths))
    return hash_text(*(path.relative_to(root).as_posix() for path in paths), *hashes)


def _blake2b(parts: Iterable[str], num_bytes: int) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=num_bytes).digest()
