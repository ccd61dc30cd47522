"""The image filter: each image is decoded once, and what later filters need is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pallava.data.clean.filters import Candidate, Decision, Filter, Findings
from pallava.data.image_hashes import perceptual_hash
from pallava.data.training_file import MAX_PIXELS
from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image
from pallava.io.files import real_folder, real_path
from pallava.io.hashing import hash_file
from pallava.io.processes import WorkerPool, batches

MAX_BACKGROUND = 0.98
"""Images with a larger share of background are nearly empty. A smear can hold few cells, so the limit is high."""

_VERSION = "image-2"
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
    key = f"{_VERSION}:{MAX_PIXELS}"

    def __init__(
        self, max_background: float = MAX_BACKGROUND, *, num_workers: int = 1, image_folder: Path | None = None
    ) -> None:
        """Keep the threshold; processes are started with the first work for them.

        Args:
            max_background: Images with a larger share of background are dropped.
            num_workers: Number of processes that decode.
            image_folder: A folder into which links may lead from a source's root.

        Raises:
            PallavaError: The share is not between 0 and 1.
        """
        if not 0 <= max_background <= 1:
            raise PallavaError(f"the maximum share of background must be between 0 and 1, got {max_background}")
        self._max_background = max_background
        self._folder = "" if image_folder is None else os.path.realpath(image_folder)
        self._pool = WorkerPool(num_workers)

    def item_key(self, candidate: Candidate) -> str:
        """Return source and name of the image with the file's size and date: a file that is replaced is judged again.

        For a link that leads out of the folders, the key says so instead: another image folder means another decision.
        """
        try:
            state = "outside_folder"
            if _is_inside(str(candidate.path), self._folders(candidate)):
                status = os.stat(candidate.path)  # noqa: PTH116 - half the cost of candidate.path.stat()
                state = f"{status.st_size}|{int(status.st_mtime)}"
        except (OSError, ValueError):
            state = "missing"
        key = f"{candidate.record.source}:{candidate.record.image}|{state}"
        return key.encode(errors="backslashreplace").decode()  # halves of surrogate pairs cannot be stored

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Read and decode the images.

        Raises:
            PallavaError: A process was killed.
        """
        tasks = [(str(each.path), self._folders(each)) for each in candidates]
        return [found for part in self._pool.map(_check_images, batches(tasks, _CHUNK)) for found in part]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Drop what has a problem or too much background."""
        if "problem" in findings:
            return Decision(False, findings["problem"])
        is_full = findings["background"] <= self._max_background
        return Decision(is_full, "" if is_full else "nearly_empty", findings["background"])

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def _folders(self, candidate: Candidate) -> tuple[str, ...]:
        root = str(candidate.path).removesuffix(candidate.record.image)
        return tuple(folder for folder in (root, self._folder) if folder)


def _check_images(tasks: Iterable[tuple[str, tuple[str, ...]]]) -> list[Findings]:
    return [check_image(path, folders) for path, folders in tasks]


def check_image(path: str, folders: Sequence[str]) -> Findings:
    """Decode an image and measure it.

    Args:
        path: The file.
        folders: It must be in one of these once all links are followed.

    Returns:
        Findings as `ImageFilter` describes them.
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
    """Return the share of pixels without tissue: of glass, of black, or of an even ground, whichever is largest.

    Args:
        image: RGB image.

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
