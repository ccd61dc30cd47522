"""The index of hashes against a search of all pairs."""

import random

import pytest

from pallava.data.image_hashes import HammingIndex
from pallava.errors import PallavaError


def flipped(value: int, count: int, draw: random.Random) -> int:
    for bit in draw.sample(range(64), count):
        value ^= 1 << bit
    return value


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 7, 10])
def test_finds_what_a_search_of_all_finds(distance: int) -> None:
    draw = random.Random(distance)
    index, hashes = HammingIndex(distance), [draw.getrandbits(64) for _ in range(200)]
    for value in hashes:
        index.add(value)
    num_found = 0
    for _ in range(200):
        asked = flipped(draw.choice(hashes), draw.randrange(distance + 3), draw)
        near = min(((value ^ asked).bit_count(), number) for number, value in enumerate(hashes))
        assert index.find(asked) == ((near[1], near[0]) if near[0] <= distance else None)
        num_found += near[0] <= distance
    assert num_found > 0
    assert num_found < 200 or distance > 9


def test_first_of_equally_near_ones() -> None:
    index = HammingIndex(4)
    assert [index.add(value) for value in (0b11, 0b11, 0b1111)] == [0, 1, 2]
    assert index.find(0b111) == (0, 1)
    assert index.find((1 << 64) - 1) is None


def test_distance_has_bounds() -> None:
    for distance in (-1, 11):
        with pytest.raises(PallavaError, match="0 to 10"):
            HammingIndex(distance)
