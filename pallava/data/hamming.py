"""Finding the nearest of millions of 64-bit hashes by the number of bits that differ."""

from __future__ import annotations

from array import array
from itertools import combinations

import numpy as np

from pallava.errors import PallavaError

MAX_DISTANCE = 10
_BANDS = ((0, 22), (22, 21), (43, 21))  # first bit and width


def check_distance(distance: int) -> None:
    """Refuses a distance that an index cannot search.

    Raises:
        PallavaError: It is not from 0 to 10.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise PallavaError(f"the distance of near duplicates is {distance}; expected 0 to {MAX_DISTANCE} (bits)")


class HammingIndex:
    """Hashes that grow in number, asked for the nearest one within a distance.

    The bits are cut into three bands. Two hashes that differ in at most `distance` bits differ in at most a third of
    that in one band, so it is enough to look at the hashes that share a band but for so few bits. A million hashes
    take some 50 MB.
    """

    def __init__(self, distance: int) -> None:
        """Makes an empty index.

        Raises:
            PallavaError: The distance is not from 0 to 10; two unrelated images are seldom nearer than 16.
        """
        check_distance(distance)
        self.distance = distance
        self._hashes = array("Q")
        # Chains: the newest hash of each value of a band, and for each hash the one before it; 0 ends a chain.
        self._newest = [np.zeros(1 << width, np.int32) for _, width in _BANDS]
        self._before = [array("i", [0]) for _ in _BANDS]
        self._masks = [_masks(width, distance // len(_BANDS)) for _, width in _BANDS]

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, value: int) -> int:
        """Takes in a hash, and gives its number, from 0."""
        self._hashes.append(value)
        for (first, width), newest, before in zip(_BANDS, self._newest, self._before, strict=True):
            band = _band(value, first, width)
            before.append(int(newest[band]))
            newest[band] = len(self._hashes)
        return len(self._hashes) - 1

    def find(self, value: int) -> tuple[int, int] | None:
        """Finds the nearest hash within the distance.

        Returns:
            Its number and distance, of several equally near ones the first; None if there is none.
        """
        best: tuple[int, int] | None = None
        for (first, width), newest, before, masks in zip(_BANDS, self._newest, self._before, self._masks, strict=True):
            heads = newest[_band(value, first, width) ^ masks]
            for number in heads[heads > 0].tolist():
                while number:
                    found = ((self._hashes[number - 1] ^ value).bit_count(), number - 1)
                    if found[0] <= self.distance and (best is None or found < best):
                        best = found
                    number = before[number]
        return None if best is None else (best[1], best[0])


def _band(value: int, first: int, width: int) -> int:
    return value >> first & (1 << width) - 1


def _masks(width: int, radius: int) -> np.ndarray:
    """Every change of at most `radius` of `width` bits."""
    changes = (bits for count in range(radius + 1) for bits in combinations(range(width), count))
    return np.array([sum(1 << bit for bit in bits) for bits in changes], np.int64)
