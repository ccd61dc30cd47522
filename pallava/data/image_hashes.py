"""Hashes of images: by content and by looks, kept in a store, and an index of the nearest among millions."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from pallava.errors import PallavaError
from pallava.images import ImageError, open_image
from pallava.io.hashing import hash_bytes
from pallava.io.processes import batches, map_in_order
from pallava.io.store import Store

NEAR_DISTANCE = 4  # default number of bits in which the perceptual hashes of near duplicates may differ
_MAX_DISTANCE = 10  # that an index can search; two unrelated images are rarely nearer than 16

# What `turned_hashes` does to an image, by name.
TURNS: dict[str, Image.Transpose | None] = {
    "": None,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 90": Image.Transpose.ROTATE_90,
    "turned by 180": Image.Transpose.ROTATE_180,
    "turned by 270": Image.Transpose.ROTATE_270,
    "transposed": Image.Transpose.TRANSPOSE,
    "transversed": Image.Transpose.TRANSVERSE,
}

_BATCH = 64
_NAMESPACE = "image hashes"
_MIN_ONES = 16
_HASHED_SIZE = 32  # imagehash scales every image to it
_BANDS = ((0, 22), (22, 21), (43, 21))  # first bit and width


@dataclass(frozen=True)
class ImageHashes:
    """Hashes of an image file, by content and by looks."""

    sha256: str = ""
    hashes: tuple[str, ...] = ()  # perceptual: one, or those of all turns in the order of `TURNS`
    problem: str = ""  # "missing" or "unreadable" if it has no hashes


@dataclass(frozen=True)
class _File:
    path: str
    state: tuple[int, int]  # size and time of the last change
    known: ImageHashes | None  # None if it must be hashed


def perceptual_hash(image: Image.Image) -> str:
    """Return a hash that small changes of an image leave alike, as 16 hexadecimal digits (64 bits).

    It says which of the 8 x 8 lowest frequencies of the grey image are above their median (pHash,
    https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html). Scaling, compression and small
    changes of colour move a few bits; two unrelated images differ in 32 on average.
    """
    import imagehash

    return str(imagehash.phash(image))


def turned_hashes(image: Image.Image) -> list[str]:
    """Return the perceptual hashes of an image in all `TURNS`; scaled down once, seven cost next to nothing."""
    small = image.convert("L").resize((_HASHED_SIZE, _HASHED_SIZE), Image.Resampling.LANCZOS)
    return [perceptual_hash(small if turn is None else small.transpose(turn)) for turn in TURNS.values()]


def has_structure(image_hash: int) -> bool:
    """Return whether a perceptual hash distinguishes an image from others.

    Half of the 64 frequencies are above their median, unless most are exactly zero. An even background, or a ramp of
    light along rows and columns, has at most 15 that are not: such images share a hash without being the same.
    """
    return image_hash.bit_count() >= _MIN_ONES


def hash_images(
    paths: Iterable[str], store: Store, *, with_turns: bool = False, num_workers: int = 1
) -> Iterator[tuple[str, ImageHashes]]:
    """Yield absolute path and hashes of each image, in order; `with_turns` for the hashes of all `TURNS`.

    The store keeps them with size and date of change: a known file is opened only if it changed.

    Raises:
        PallavaError: A worker process was killed.
    """
    files = (_look_up(batch, store, len(TURNS) if with_turns else 1) for batch in batches(paths, _BATCH))
    for results in map_in_order(partial(_hash_missing, with_turns=with_turns), files, num_workers):
        new = {file.path: [file.state, *astuple(hashes)] for file, hashes in results if not file.known}
        store.put(_NAMESPACE, new)
        yield from ((file.path, hashes) for file, hashes in results)


def _look_up(paths: Sequence[str], store: Store, num_hashes: int) -> list[_File]:
    stored = store.get(_NAMESPACE, paths)
    return [_find(path, stored.get(path), num_hashes) for path in paths]


def _find(path: str, stored: list | None, num_hashes: int) -> _File:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the cost of Path(path).stat(), for millions of files
    except (OSError, ValueError):
        return _File(path, (0, 0), ImageHashes(problem="missing"))
    state = (status.st_size, status.st_mtime_ns)
    found = ImageHashes(stored[1], tuple(stored[2]), stored[3]) if stored and tuple(stored[0]) == state else None
    return _File(path, state, found if found and (found.problem or len(found.hashes) >= num_hashes) else None)


def _hash_missing(files: Sequence[_File], with_turns: bool) -> list[tuple[_File, ImageHashes]]:
    return [(file, file.known or _hash_image(file, with_turns)) for file in files]


def _hash_image(file: _File, with_turns: bool) -> ImageHashes:
    try:
        content = Path(file.path).read_bytes()
        image = open_image(content)
    except (ImageError, OSError):
        return ImageHashes(problem="unreadable")
    hashes = turned_hashes(image) if with_turns else [perceptual_hash(image)]
    return ImageHashes(hash_bytes(content), tuple(hashes))


class HammingIndex:
    """A growing set of 64-bit hashes, searched for the nearest one within a distance.

    The bits are cut into three bands. Two hashes that differ in at most `distance` bits differ in at most a third of
    that in one band, so it is enough to compare the hashes that nearly share a band. A million hashes take some 50 MB.
    """

    def __init__(self, distance: int) -> None:
        """Make an empty index, or raise PallavaError for a distance that is not from 0 to 10."""
        if not 0 <= distance <= _MAX_DISTANCE:
            raise PallavaError(f"the distance of near duplicates must be 0 to {_MAX_DISTANCE} bits, got {distance}")
        self.distance = distance
        self._hashes = array("Q")
        # Chains: the newest hash of each value of a band, and for each hash the one before it; 0 ends a chain.
        self._newest = [np.zeros(1 << width, np.int32) for _, width in _BANDS]
        self._before = [array("i", [0]) for _ in _BANDS]
        self._masks = [_masks(width, distance // len(_BANDS)) for _, width in _BANDS]

    def add(self, value: int) -> int:
        """Add a hash and return its number, from 0."""
        self._hashes.append(value)
        for (first, width), newest, before in zip(_BANDS, self._newest, self._before, strict=True):
            band = _band(value, first, width)
            before.append(int(newest[band]))
            newest[band] = len(self._hashes)
        return len(self._hashes) - 1

    def find(self, value: int) -> tuple[int, int] | None:
        """Return number and distance of the nearest hash, the first of equally near ones; None if no hash is near."""
        best: tuple[int, int] | None = None
        for (first, width), newest, before, masks in zip(_BANDS, self._newest, self._before, self._masks, strict=True):
            heads = newest[_band(value, first, width) ^ masks]
            for number in heads[heads > 0].tolist():
                while number:
                    found = ((self._hashes[number - 1] ^ value).bit_count(), number - 1)
                    if found[0] <= self.distance and (best is None or found < best):
                        best = found
                    number = before[number]
        return best and (best[1], best[0])


def _band(value: int, first: int, width: int) -> int:
    return value >> first & (1 << width) - 1


def _masks(width: int, radius: int) -> np.ndarray:
    """Return every change of at most `radius` of `width` bits."""
    changes = (bits for count in range(radius + 1) for bits in combinations(range(width), count))
    return np.array([sum(1 << bit for bit in bits) for bits in changes], np.int64)
