"""Images that cannot be used are dropped; each is decoded once, and what later filters need is noted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.image_hashes import perceptual_hash
from pallava.data.training_file import MAX_PIXELS
from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image
from pallava.io.hashing import hash_file
from pallava.io.processes import batches, start_worker
from pallava.io.real_paths import real_folder, real_path

MAX_BACKGROUND = 0.98
"""Images with a larger share of background are nearly empty. A smear can hold few cells, so the limit is high."""

_VERSION = "image-2"
_THUMBNAIL = 256  # pixels of the longer side on which background is measured
_MIN_GLASS, _MAX_GLASS_CHROMA = 220, 20  # of 255: bright and colourless is glass without tissue
_MAX_BLACK = 25
_EVEN = 6  # of 255: how far a pixel of an even ground lies from the median
_CHUNK = 8


class ImageFilter:
    """Drops images that are missing, unreadable, truncated, too large or nearly empty.

    A score holds either "problem", or "sha256" of the file, "width", "height", "background" (share of the pixels
    without tissue, 0 to 1) and "perceptual_hash".
    """

    name = "image"
    kinds = APPLIES_TO["image"]
    key = f"{_VERSION}:{MAX_PIXELS}"

    def __init__(
        self, max_background: float = MAX_BACKGROUND, *, num_workers: int = 1, image_folder: Path | None = None
    ) -> None:
        """Takes the threshold; processes are started when there is work for them.

        Args:
            max_background: Images with a larger share of background are dropped.
            num_workers: Processes that decode.
            image_folder: A link may lead from a source's root to what lies in here.

        Raises:
            PallavaError: The share is not between 0 and 1.
        """
        if not 0 <= max_background <= 1:
            raise PallavaError(f"the largest share of background is {max_background}; expected 0 to 1")
        self._max_background = max_background
        self._num_workers = num_workers
        self._folder = "" if image_folder is None else os.path.realpath(image_folder)
        self._pool: ProcessPoolExecutor | None = None

    def item_key(self, item: Item) -> str:
        """Source and name of the image, with the file's size and date: a file that is replaced is judged again.

        Where a link leads out of the folders, that stands in their place: another image folder brings another verdict.
        """
        try:
            state = "outside_folder"
            if _is_inside(str(item.path), self._folders(item)):
                status = os.stat(item.path)  # noqa: PTH116 - half the cost of item.path.stat()
                state = f"{status.st_size}|{int(status.st_mtime)}"
        except (OSError, ValueError):
            state = "missing"
        key = f"{item.record.source}:{item.record.image}|{state}"
        return key.encode(errors="backslashreplace").decode()  # halves of surrogate pairs cannot be stored

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Reads and decodes the images.

        Raises:
            PallavaError: A process was ended from outside.
        """
        tasks = [(str(item.path), self._folders(item)) for item in items]
        if self._num_workers == 1 or len(tasks) <= _CHUNK:
            return _check_images(tasks)
        try:
            return [score for future in self._submit(tasks) for score in future.result()]
        except BrokenProcessPool:
            raise PallavaError(
                "a process that decodes images was ended from outside; is there enough memory? Try --workers 1"
            ) from None

    def decide(self, item: Item, score: Score) -> Verdict:
        """Drops what has a problem or too much background."""
        if "problem" in score:
            return Verdict(False, score["problem"])
        is_full = score["background"] <= self._max_background
        return Verdict(is_full, "" if is_full else "nearly_empty", score["background"])

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _folders(self, item: Item) -> tuple[str, ...]:
        root = str(item.path).removesuffix(item.record.image)
        return tuple(folder for folder in (root, self._folder) if folder)

    def _submit(self, tasks: list[tuple[str, tuple[str, ...]]]) -> list[Future[list[Score]]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._num_workers, get_context("spawn"), start_worker)
        pool = self._pool
        return [pool.submit(_check_images, chunk) for chunk in batches(tasks, _CHUNK)]


def _check_images(tasks: Iterable[tuple[str, tuple[str, ...]]]) -> list[Score]:
    return [check_image(path, folders) for path, folders in tasks]


def check_image(path: str, folders: Sequence[str]) -> Score:
    """Decodes an image and measures it.

    Args:
        path: The file.
        folders: Where it must lie, once all links are followed.

    Returns:
        The score as `ImageFilter` describes it.
    """
    try:
        if not _is_inside(path, folders):
            return {"problem": "outside_folder"}
        width, height = image_size(path)
        if width * height > MAX_PIXELS:
            return {"problem": "too_large", "width": width, "height": height}
        digest = hash_file(path)
        image = open_image(path, max_pixels=MAX_PIXELS)
    except (ImageError, OSError, ValueError) as error:
        return {"problem": _problem(path, error)}
    size = {"width": image.width, "height": image.height}
    return {"sha256": digest, **size, "background": background_share(image), "perceptual_hash": perceptual_hash(image)}


def background_share(image: Image.Image) -> float:
    """Measures the share of pixels without tissue: of glass, of black, or of an even ground, whichever is larger.

    Args:
        image: Of mode RGB.

    Returns:
        The share, from 0 to 1, rounded to four digits.
    """
    small = image.reduce(max(1, max(image.size) // _THUMBNAIL))
    pixels = np.asarray(small, dtype=np.int16).reshape(-1, 3)
    low, high = pixels.min(1), pixels.max(1)
    is_glass = (low >= _MIN_GLASS) & (high - low <= _MAX_GLASS_CHROMA)
    is_black = high <= _MAX_BLACK
    is_even = (np.abs(pixels - np.median(pixels, axis=0)) <= _EVEN).all(1)
    return round(float(max(is_glass.mean(), is_black.mean(), is_even.mean())), 4)


def _is_inside(path: str, folders: Sequence[str]) -> bool:
    real = real_path(path)
    return any(os.path.commonpath([root := real_folder(folder), real]) == root for folder in folders)


def _problem(path: str, error: Exception) -> str:
    if "\0" in path or not os.path.exists(path):  # noqa: PTH110
        return "missing"
    return "truncated" if "truncated" in str(error.__cause__).lower() else "unreadable"
