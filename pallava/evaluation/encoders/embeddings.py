"""Embeddings of images and texts, each computed once and kept on disk by content and model.

New ones are written at least every half minute, each time as a whole file, so that a killed run loses little and
several runs can share a cache. Letters in shapes: N items, D width.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.evaluation.encoders.load import Encoder
from pallava.images import ImageError, open_image
from pallava.io.files import report_os_errors, whole_file
from pallava.io.hashing import hash_file, hash_text
from pallava.io.processes import batches, map_ahead, num_cores

_SECONDS_BETWEEN_WRITES = 30.0
_STALE_SECONDS = 3600.0


def default_cache() -> Path:
    """Return the folder of all embeddings: in ``PALLAVA_CACHE`` if that is set, else in ``~/.cache/pallava``."""
    return Path(os.environ.get("PALLAVA_CACHE", "~/.cache/pallava")).expanduser() / "embeddings"


class EmbeddingCache:
    """Vectors by content; below `folder` each encoder, and each preprocessing, has a folder of its own.

    Raises:
        PallavaError: The folder cannot be written.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.folder = folder / encoder.identity
        self._vectors: dict[str, np.ndarray] = {}
        self._new: dict[str, np.ndarray] = {}
        self._last_write = time.monotonic()
        with report_os_errors(f"cannot keep embeddings in '{self.folder}'"):
            self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.unfinished"):  # of killed runs
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        for path in sorted(self.folder.glob("*.npy")):
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def get(self, keys: Sequence[str]) -> Tensor:
        """Return the vectors of known keys: (N, D), float32."""
        return torch.from_numpy(np.stack([self._vectors[key] for key in keys]))

    def add(self, keys: Sequence[str], vectors: Tensor) -> None:
        """Take the vectors (N, D) of new keys, at unit length; they reach the disk after a while, or by `write`."""
        vectors = vectors.detach().float()
        if not vectors.isfinite().all():
            raise PallavaError("the embeddings of the model are not finite; its weights are damaged or overflow")
        new = dict(zip(keys, torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy(), strict=True))
        self._vectors |= new
        self._new |= new
        if time.monotonic() - self._last_write > _SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write the new vectors."""
        self._last_write = time.monotonic()
        if not self._new:
            return
        width = len(next(iter(self._new.values())))
        rows = np.empty(len(self._new), dtype=[("key", "S64"), ("vector", np.float32, (width,))])
        rows["key"], rows["vector"] = list(self._new), list(self._new.values())
        path = self.folder / f"{hash_text(*self._new)}.npy"
        with report_os_errors(f"cannot write embeddings to '{self.folder}'"), whole_file(path, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        self._new = {}

    def _read(self, path: Path) -> None:
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            vectors = np.asarray(rows["vector"])
        except (OSError, ValueError, EOFError, IndexError):  # damaged from outside; it is computed again
            path.unlink(missing_ok=True)
            return
        self._vectors.update(zip(map(bytes.decode, rows["key"].tolist()), vectors, strict=True))


@dataclass(frozen=True)
class ImageEmbeddings:
    """Embeddings of the N images that could be read."""

    vectors: Tensor  # (N, D) of unit length
    contents: list[str]  # hash of each file's bytes
    index: list[int]  # number of each among the given paths
    unreadable: dict[str, str]  # the other paths, with their reasons


def embed_images(
    encoder: Encoder, paths: Sequence[Path], cache: EmbeddingCache, *, batch_size: int = 64
) -> ImageEmbeddings:
    """Embed image files; those that cannot be read are left out with their reasons, but not all of them.

    Raises:
        PallavaError: None of them can be read, or an embedding is not finite.
    """
    with ThreadPoolExecutor(num_cores(at_most=16)) as pool:
        hashes = list(tqdm(pool.map(_hash_file, paths), total=len(paths), desc="read", disable=None, unit="image"))
        first = {h: p for p, h in zip(reversed(paths), reversed(hashes), strict=True) if isinstance(h, str)}
        missing = {key: path for key, path in first.items() if key not in cache}
        broken = _compute_images(encoder, missing, cache, batch_size, pool)
    failures = [h if isinstance(h, ImageError) else broken.get(h) for h in hashes]
    unreadable = {str(path): str(failure) for path, failure in zip(paths, failures, strict=True) if failure}
    index = [number for number, failure in enumerate(failures) if not failure]
    contents = [str(hashes[number]) for number in index]
    if not index:
        example = next(iter(unreadable.values()), "the list is empty")
        raise PallavaError(f"none of {len(paths)} images can be read; the first: {example}")
    return ImageEmbeddings(cache.get(contents), contents, index, unreadable)


def embed_texts(encoder: Encoder, texts: Sequence[str], cache: EmbeddingCache, *, batch_size: int = 256) -> Tensor:
    """Embed texts: (N, D), unit length."""
    keys = [hash_text("text", text) for text in texts]
    missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in cache]
    try:
        with torch.inference_mode():
            for part in tqdm([*batches(missing, batch_size)], desc="texts", disable=None, unit="batch"):
                cache.add([key for key, _ in part], encoder.encode_text([text for _, text in part]))
    finally:
        cache.write()
    return cache.get(keys)


def _compute_images(
    encoder: Encoder, missing: Mapping[str, Path], cache: EmbeddingCache, size: int, pool: ThreadPoolExecutor
) -> dict[str, ImageError]:
    """Fill the cache in batches; return the errors of those that cannot be decoded, by hash."""
    broken: dict[str, ImageError] = {}
    # The next batch is read while one is computed.
    loaded = map_ahead(pool, partial(_load, encoder), missing.values(), 2 * size)
    try:
        with tqdm(total=len(missing), desc="images", disable=None, unit="image") as bar, torch.inference_mode():
            for batch in batches(zip(missing, loaded, strict=True), size):
                broken |= {key: error for key, error in batch if isinstance(error, ImageError)}
                good = {key: pixels for key, pixels in batch if isinstance(pixels, Tensor)}
                if good:
                    cache.add(list(good), encoder.encode_image(torch.stack(list(good.values()))))
                bar.update(len(batch))
    finally:
        cache.write()
    return broken


def _load(encoder: Encoder, path: Path) -> Tensor | ImageError:
    try:
        return encoder.preprocess(open_image(path))
    except ImageError as error:
        return error


def _hash_file(path: Path) -> str | ImageError:
    try:
        return hash_file(path)
    except OSError as error:
        return ImageError(f"cannot open image '{path}': {error.strerror}")


def count_reasons(unreadable: Mapping[str, str]) -> dict[str, int]:
    """Count the images for each reason, without the images' names."""
    return dict(Counter(reason.replace(f" '{path}'", "") for path, reason in unreadable.items()).most_common())
