"""Hashes of many images, computed once: they are kept in a file, and a stopped run goes on from there."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pallava.data.clean.duplicates import perceptual_hash, turned_hashes
from pallava.errors import PallavaError
from pallava.images import ImageError, open_image
from pallava.io.processes import batches, map_in_order

_BATCH = 64
_TABLE = "CREATE TABLE IF NOT EXISTS images (path TEXT PRIMARY KEY, size, mtime, sha256, hashes, problem) WITHOUT ROWID"


@dataclass(frozen=True)
class ImageHashes:
    """What is known of an image file.

    Attributes:
        sha256: Of its bytes.
        hashes: Perceptual hash, or those of all turns in the order of `TURNS`.
        problem: Why there are none, or nothing.
    """

    sha256: str = ""
    hashes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _Known:
    """A file's path, its size and date, and what is stored of it; no size if there is no such file."""

    path: str
    size: int | None
    mtime: int = 0
    stored: ImageHashes | None = None


class HashCache:
    """Hashes of image files by path, size and date of change, in an SQLite file."""

    def __init__(self, path: str | Path) -> None:
        """Opens or makes the file.

        Raises:
            PallavaError: It cannot be made, or is something else.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(_TABLE)
            self._database.execute("SELECT path, size, mtime, sha256, hashes, problem FROM images LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise PallavaError(f"'{path}' cannot hold the hashes of images ({error}); remove it") from None

    def hash_images(
        self, paths: Iterable[str], *, with_turns: bool = False, num_workers: int = 1
    ) -> Iterator[tuple[str, ImageHashes]]:
        """Yields path and hashes of each image, in order; images that were hashed before are not opened.

        Args:
            paths: Absolute paths.
            with_turns: Hashes of all turns.
            num_workers: Processes that decode.

        Raises:
            PallavaError: A worker was ended from outside.
        """
        num_hashes = 8 if with_turns else 1
        known = (self._look_up(batch, num_hashes) for batch in batches(paths, _BATCH))
        for results in map_in_order(partial(_hash_missing, with_turns=with_turns), known, num_workers):
            self._store([(file, hashes) for file, hashes in results if file.stored is None and file.size is not None])
            yield from ((file.path, hashes) for file, hashes in results)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _look_up(self, paths: Sequence[str], num_hashes: int) -> list[_Known]:
        marks = ", ".join("?" * len(paths))
        rows = self._database.execute(f"SELECT * FROM images WHERE path IN ({marks})", paths)
        stored = {path: ((size, mtime), ImageHashes(sha, tuple(h.split()), p)) for path, size, mtime, sha, h, p in rows}
        return [_known(path, stored.get(path), num_hashes) for path in paths]

    def _store(self, new: Sequence[tuple[_Known, ImageHashes]]) -> None:
        rows = [(k.path, k.size, k.mtime, h.sha256, " ".join(h.hashes), h.problem) for k, h in new]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)


def _known(path: str, stored: tuple[tuple[int, int], ImageHashes] | None, num_hashes: int) -> _Known:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the cost of Path(path).stat(), and millions are asked
    except (OSError, ValueError):
        return _Known(path, None)
    state = (status.st_size, status.st_mtime_ns)
    if stored and stored[0] == state and (stored[1].problem or len(stored[1].hashes) >= num_hashes):
        return _Known(path, *state, stored[1])
    return _Known(path, *state)


def _hash_missing(files: Sequence[_Known], with_turns: bool) -> list[tuple[_Known, ImageHashes]]:
    return [(file, file.stored or _hash_image(file, with_turns)) for file in files]


def _hash_image(file: _Known, with_turns: bool) -> ImageHashes:
    if file.size is None:
        return ImageHashes(problem="missing")
    try:
        content = Path(file.path).read_bytes()
        image = open_image(content)
    except (ImageError, OSError):
        return ImageHashes(problem="unreadable")
    hashes = turned_hashes(image) if with_turns else [perceptual_hash(image)]
    return ImageHashes(hashlib.sha256(content).hexdigest(), tuple(hashes))
