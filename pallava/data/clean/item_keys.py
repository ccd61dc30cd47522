"""By what the judges name an item: the text or the image file that a score depends on."""

from __future__ import annotations

import hashlib

from pallava.data.clean.filters import Item
from pallava.errors import PallavaError
from pallava.io.hashing import hash_file


def text_key(item: Item) -> str:
    """SHA-256 of an item's text."""
    return hashlib.sha256(item.text.encode(errors="surrogatepass")).hexdigest()


def image_key(item: Item) -> str:
    """SHA-256 of an item's image file, from the image filter's score where that ran before.

    Raises:
        PallavaError: The file cannot be read.
    """
    if found := item.shared.get("sha256"):
        return str(found)
    try:
        return hash_file(item.path)
    except OSError as error:
        raise PallavaError(
            f"cannot read image '{item.path}': {error.strerror}; put the filter 'image' first, which drops such rows"
        ) from None
