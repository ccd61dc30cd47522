"""The filters of images: each is decoded once, and duplicates are found by the hashes that this leaves."""

import os
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings
from pallava.data.image_hashes import NEAR_DISTANCE, HammingIndex, has_structure, perceptual_hash
from pallava.data.sources.base import Question
from pallava.data.training_file import MAX_PIXELS
from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image
from pallava.io.hashing import hash_file, short_hash
from pallava.io.processes import WorkerPool, batches

MAX_BACKGROUND = 0.98
"""Images with a larger share of background are nearly empty. A smear can hold few cells, so the limit is high."""

_THUMBNAIL = 256  # pixels of the longer side on which background is measured
_MIN_GLASS, _MAX_GLASS_CHROMA = 220, 20  # of 255: bright and colourless is glass without tissue
_MAX_BLACK = 25
_EVEN = 6  # of 255: largest distance of a pixel of an even ground from the median
_CHUNK = 8


class ImageFilter(Filter):
    """Drop images that are missing, unreadable, truncated, too large or nearly empty.

    Findings hold either "problem", or "sha256" of the file, "width", "height", "background" (share of the pixels
    without tissue, 0 to 1) and "perceptual_hash".
    """

    name = "image"
    key = f"image-2:{MAX_PIXELS}"
    share = 32

    def __init__(self, max_background: float = MAX_BACKGROUND, *, num_workers: int = 1) -> None:
        if not 0 <= max_background <= 1:
            raise PallavaError(f"the maximum share of background must be between 0 and 1, got {max_background}")
        self._max_background = max_background
        self._pool = WorkerPool(num_workers)

    def item_key(self, candidate: Candidate) -> str:
        """Return source and name of the image with the file's size and date, by which a new file is judged again."""
        try:
            status = os.stat(candidate.path)  # noqa: PTH116 - half the cost of candidate.path.stat()
            state = f"{status.st_size}|{int(status.st_mtime)}"
        except (OSError, ValueError):
            state = "missing"
        key = f"{candidate.record.source}:{candidate.record.image}|{state}"
        return key.encode(errors="backslashreplace").decode()  # halves of surrogate pairs cannot be stored

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        paths = [str(each.path) for each in candidates]
        return [found for part in self._pool.map(_check_images, batches(paths, _CHUNK)) for found in part]

    def use_cores(self, count: int) -> None:
        self._pool = WorkerPool(count)

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        if "problem" in findings:
            return Decision(findings["problem"])
        share = findings["background"]
        return Decision("" if share <= self._max_background else "nearly_empty", share)

    def close(self) -> None:
        self._pool.close()


def _check_images(paths: Sequence[str]) -> list[Findings]:
    return [_check_image(path) for path in paths]


def _check_image(path: str) -> Findings:
    """Decode and measure an image."""
    try:
        width, height = image_size(path)
        if width * height > MAX_PIXELS:
            return {"problem": "too_large", "width": width, "height": height}
        digest = hash_file(path)
        image = open_image(path, max_pixels=MAX_PIXELS)
    except (ImageError, OSError, ValueError) as error:
        if "\0" in path or not os.path.exists(path):  # noqa: PTH110
            return {"problem": "missing"}
        return {"problem": "truncated" if "truncated" in str(error.__cause__).lower() else "unreadable"}
    size = {"width": image.width, "height": image.height}
    return {"sha256": digest, **size, "background": _background_share(image), "perceptual_hash": perceptual_hash(image)}


def _background_share(image: Image.Image) -> float:
    """Return the share of pixels without tissue: of glass, of black, or of an even ground, whichever is largest."""
    small = image.reduce(max(1, max(image.size) // _THUMBNAIL))
    pixels = np.asarray(small, dtype=np.int16).reshape(-1, 3)
    low, high = pixels.min(1), pixels.max(1)
    is_glass = (low >= _MIN_GLASS) & (high - low <= _MAX_GLASS_CHROMA)
    is_black = high <= _MAX_BLACK
    is_even = (np.abs(pixels - np.median(pixels, axis=0)) <= _EVEN).all(1)
    return round(float(max(is_glass.mean(), is_black.mean(), is_even.mean())), 4)


class _First(NamedTuple):
    """The kept file that a file repeats (itself, if it is the first of its kind)."""

    number: int
    record: str
    how: str = ""  # "exact" or "near", or nothing for itself
    distance: int = 0  # in bits


class DuplicateFilter(Filter):
    """Keep the first, in the order of the records, of images that are the same or nearly so by `ImageFilter`'s hashes.

    Rows of one file (same source, same path) are not duplicates of each other unless their text is equal too. Of
    captions, any row of a duplicate file is dropped; a question only if its text and answer occur a second time, since
    another question about the same image teaches something else. Captions and questions are not compared. Every reason
    begins with ``exact duplicate of``, ``near duplicate of`` or ``repetition of`` and names the record that is kept.
    """

    name = "duplicates"
    is_ordered = True

    def begin(self) -> None:
        self._indexes = {kind: HammingIndex(NEAR_DISTANCE) for kind in self.kinds}
        self._seen = _Seen()
        self._num_firsts = 0

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Compare a candidate with those before it, which needs the image filter's findings."""
        file = ("file", candidate.kind, candidate.record.source, candidate.record.image)
        first = self._seen.get(*file) or self._compare(candidate)
        self._seen.put(first, *file)
        if first.how and candidate.kind == "captions":
            tail = f" (distance {first.distance})" if first.how == "near" else ""
            return Decision(f"{first.how} duplicate of {first.record}{tail}", float(first.distance))
        answer = candidate.record.answer.strip() if isinstance(candidate.record, Question) else ""
        text = ("text", candidate.kind, first.number, " ".join(candidate.text.split()), answer)
        if row := self._seen.get(*text):
            return Decision(f"repetition of {row.record}", float(first.distance))
        self._seen.put(_First(first.number, _name(candidate)), *text)
        return KEEP

    def _compare(self, candidate: Candidate) -> _First:
        if not candidate.shared.get("sha256") or not candidate.shared.get("perceptual_hash"):
            raise PallavaError("the filter 'duplicates' needs the hashes of the filter 'image'; put 'image' before it")
        content = ("content", candidate.kind, candidate.shared["sha256"])
        if first := self._seen.get(*content):
            return first._replace(how="exact")
        image_hash, index = int(candidate.shared["perceptual_hash"], 16), self._indexes[candidate.kind]
        found = index.find(image_hash) if has_structure(image_hash) else None
        if found and (first := self._seen.get("hash", candidate.kind, found[0])):
            return first._replace(how="near", distance=found[1])
        self._num_firsts += 1
        first = _First(self._num_firsts, _name(candidate))
        self._seen.put(first, *content)
        if has_structure(image_hash):
            self._seen.put(first, "hash", candidate.kind, index.add(image_hash))
        return first


def _name(candidate: Candidate) -> str:
    return f"{candidate.record.source}:{candidate.record.id}"


class _Seen:
    """A dictionary that SQLite moves to the disk as it grows, which keeps millions of keys off the memory."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # a file without name, gone with the connection
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA cache_size = -65536")  # in KiB
        self._database.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY, number, record, how, distance)")
        self._database.execute("BEGIN")  # never committed, which is faster

    def get(self, *key: str | int) -> _First | None:
        query = "SELECT number, record, how, distance FROM seen WHERE key = ?"
        row = self._database.execute(query, (_hash(key),)).fetchone()
        return row and _First(*row)

    def put(self, first: _First, *key: str | int) -> None:
        self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?)", (_hash(key), *first))


def _hash(key: tuple[str | int, ...]) -> int:
    return int.from_bytes(short_hash(*key), "big", signed=True)
