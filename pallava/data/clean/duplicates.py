"""Exact and near duplicates among images, within and across sources."""

from __future__ import annotations

from PIL import Image


def perceptual_hash(image: Image.Image) -> str:
    """A hash that small changes of an image leave alike, as 16 hexadecimal digits (64 bits).

    It says which of the 8 x 8 lowest frequencies of the grey image lie above their median (pHash,
    https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html). Scaling, compression and small
    changes of colour move a few bits; two unrelated images differ in 32 on average.
    """
    import imagehash

    return str(imagehash.phash(image))
