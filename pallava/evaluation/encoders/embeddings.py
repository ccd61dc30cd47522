"""Embeddings of images and texts, each computed once: they are kept on disk by content and model.

What is computed is written at least every half minute, each time as a whole file under a name of its own, so that a
killed run loses little, and several may share a cache. Letters in shapes: N items, D width.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.evaluation.encoders.load import Encoder
from pallava.images import ImageError, open_image

_SECONDS_BETWEEN_WRITES = 30.0
_STALE_SECONDS = 3600.0
_KEY = "S32"
_READ_BYTES = 1 << 20


class EmbeddingCache:
    """Vectors by content, of one encoder.

    Args:
        folder: Of the caches of all encoders.
        encoder: Whose embeddings they are; another one, or another preprocessing, has a folder of its own.

    Raises:
        PallavaError: The folder cannot be written.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.folder = folder / encoder.identity
        self._place: dict[str, tuple[np.ndarray, int]] = {}
        self._new: dict[str, np.ndarray] = {}
        self._last_write = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PallavaError(f"cannot keep embeddings in {self.folder}: {error.strerror}") from None
        self._drop_stale()
        for path in sorted(self.folder.glob("*.npy")):
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def get(self, keys: Sequence[str]) -> Tensor:
        """The vectors of keys that are there: (N, D), float32."""
        return torch.from_numpy(np.stack([block[row] for block, row in map(self._place.__getitem__, keys)]))

    def add(self, keys: Sequence[str], vectors: Tensor) -> None:
        """Takes the vectors (N, D) of new keys; they reach the disk after a while, or by `write`."""
        block = vectors.detach().float().cpu().numpy()
        for row, key in enumerate(keys):
            self._place[key] = block, row
            self._new[key] = block[row]
        if time.monotonic() - self._last_write > _SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Writes what is new.

        Raises:
            PallavaError: The disk does not take it.
        """
        self._last_write = time.monotonic()
        if not self._new:
            return
        width = len(next(iter(self._new.values())))
        rows = np.empty(len(self._new), dtype=[("key", _KEY), ("vector", np.float32, (width,))])
        rows["key"], rows["vector"] = list(self._new), list(self._new.values())
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PallavaError(f"cannot write embeddings to {self.folder}: {error.strerror}") from None
        self._new = {}

    def _read(self, path: Path) -> None:
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            vectors = rows["vector"]
        except (OSError, ValueError, EOFError, IndexError):  # damaged by someone else; it is computed again
            path.unlink(missing_ok=True)
            return
        self._place.update((key.decode(), (vectors, row)) for row, key in enumerate(rows["key"].tolist()))

    def _drop_stale(self) -> None:
        """Removes halves of files that killed runs left."""
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ImageEmbeddings:
    """Embeddings of the images that could be read.

    Attributes:
        vectors: (N, D), unit length.
        contents: Hash of each image's bytes.
        index: Which of the given paths these are.
        unreadable: The other paths, and why.
    """

    vectors: Tensor
    contents: list[str]
    index: list[int]
    unreadable: dict[str, str] = field(default_factory=dict)


def embed_images(
    encoder: Encoder, paths: Sequence[Path], cache: EmbeddingCache, *, batch_size: int = 64
) -> ImageEmbeddings:
    """Embeds image files; what cannot be read is told and left out.

    Raises:
        PallavaError: None of them can be read, or an embedding is not finite.
    """
    num_threads = min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(num_threads) as pool:
        hashes = list(tqdm(pool.map(_hash_file, paths), total=len(paths), desc="read", disable=None, unit="image"))
        unreadable = {str(p): h.reason for p, h in zip(paths, hashes, strict=True) if isinstance(h, _Failure)}
        first = {h: p for p, h in zip(reversed(paths), reversed(hashes), strict=True) if isinstance(h, str)}
        missing = [(key, path) for key, path in first.items() if key not in cache]
        broken = _compute_images(encoder, missing, cache, batch_size, pool)
    index = [n for n, h in enumerate(hashes) if isinstance(h, str) and h not in broken]
    contents = [str(hashes[n]) for n in index]
    unreadable |= {str(p): broken[h] for p, h in zip(paths, hashes, strict=True) if isinstance(h, str) and h in broken}
    if not index:
        example = next(iter(unreadable.values()), "no image is given")
        raise PallavaError(f"none of {len(paths)} images can be read; the first: {example}")
    return ImageEmbeddings(cache.get(contents), contents, index, unreadable)


def embed_texts(encoder: Encoder, texts: Sequence[str], cache: EmbeddingCache, *, batch_size: int = 256) -> Tensor:
    """Embeds texts: (N, D), unit length.

    Raises:
        PallavaError: An embedding is not finite.
    """
    keys = [_hash(b"text " + text.encode()) for text in texts]
    missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in cache]
    with _written(cache), torch.inference_mode():
        for start in tqdm(range(0, len(missing), batch_size), desc="texts", disable=None, unit="batch"):
            part = missing[start : start + batch_size]
            _keep(cache, [key for key, _ in part], encoder.encode_text([text for _, text in part]))
    return cache.get(keys)


@dataclass(frozen=True)
class _Failure:
    reason: str


@contextmanager
def _written(cache: EmbeddingCache) -> Iterator[None]:
    """Writes the cache at the end, whatever the end is."""
    try:
        yield
    finally:
        cache.write()


def _compute_images(
    encoder: Encoder,
    missing: Sequence[tuple[str, Path]],
    cache: EmbeddingCache,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> dict[str, str]:
    """Fills the cache; gives the reasons of those that cannot be decoded, by hash."""
    broken: dict[str, str] = {}
    bar = tqdm(total=len(missing), desc="images", disable=None, unit="image")
    with bar, _written(cache), torch.inference_mode():
        for batch in _ahead(missing, batch_size, lambda path: _load(encoder, path), pool):
            broken |= {key: loaded.reason for key, loaded in batch if isinstance(loaded, _Failure)}
            good = [(key, loaded) for key, loaded in batch if isinstance(loaded, Tensor)]
            if good:
                _keep(cache, [key for key, _ in good], encoder.encode_image(torch.stack([p for _, p in good])))
            bar.update(len(batch))
    return broken


def _ahead(
    items: Sequence[tuple[str, Path]],
    batch_size: int,
    load: Callable[[Path], Tensor | _Failure],
    pool: ThreadPoolExecutor,
) -> Iterator[list[tuple[str, Tensor | _Failure]]]:
    """Batches of (key, loaded); the next one is read while this one is computed."""
    waiting: deque[list[tuple[str, Future]]] = deque()
    for start in range(0, len(items), batch_size):
        waiting.append([(key, pool.submit(load, path)) for key, path in items[start : start + batch_size]])
        if len(waiting) > 1:
            yield [(key, future.result()) for key, future in waiting.popleft()]
    for batch in waiting:
        yield [(key, future.result()) for key, future in batch]


def _load(encoder: Encoder, path: Path) -> Tensor | _Failure:
    try:
        return encoder.preprocess(open_image(path))
    except ImageError as error:
        return _Failure(str(error))


def _keep(cache: EmbeddingCache, keys: Sequence[str], vectors: Tensor) -> None:
    vectors = vectors.float()
    if not vectors.isfinite().all():
        raise PallavaError("the model gives embeddings that are not finite: its weights are damaged or overflow")
    cache.add(keys, torch.nn.functional.normalize(vectors, dim=-1))


def _hash_file(path: Path) -> str | _Failure:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        return _Failure(f"cannot open image '{path}': {error.strerror}")
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def default_cache() -> Path:
    """``PALLAVA_CACHE``, else ``~/.cache/pallava``; embeddings lie in a folder of their own."""
    return Path(os.environ.get("PALLAVA_CACHE", "~/.cache/pallava")).expanduser() / "embeddings"


def count_reasons(unreadable: Mapping[str, str]) -> dict[str, int]:
    """How many images each reason cost, without the images' names."""
    reasons = Counter(reason.replace(f" '{path}'", "") for path, reason in unreadable.items())
    return dict(reasons.most_common())
