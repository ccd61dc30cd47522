"""Sets whose pictures lie inside of parquet files, as Hugging Face keeps them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pallava.data.sources.base import RowDropped
from pallava.data.sources.files import Progress
from pallava.errors import PallavaError
from pallava.io.records import Record as Row

_BATCH = 64
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"II": ".tif", b"MM": ".tif", b"RI": ".webp", b"BM": ".bmp"}
_LOGGER = logging.getLogger(__name__)


def parquet_rows(path: Path, progress: Progress) -> Iterator[Row | RowDropped]:
    """Yields the rows as dicts, a few at a time.

    Raises:
        PallavaError: The file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            size, num_rows = path.stat().st_size, max(file.metadata.num_rows, 1)
            index = 0
            for batch in file.iter_batches(_BATCH):
                for value in batch.to_pylist():
                    progress(size * (index + 1) // num_rows)
                    yield Row(index, f"row {index + 1}", value)
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise PallavaError(f"'{path}' is not a parquet file that can be read ({error})") from None


class ImageWriter:
    """Writes pictures below a folder, each once: its name is the hash of its bytes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._written: set[str] = set()

    def write(self, image: Any, folder: str) -> str:
        """Writes a picture unless it is there, and gives its path relative to the root.

        Args:
            image: What the column holds: ``{"bytes", "path"}``, or bytes.
            folder: Where to write, relative to the root.

        Raises:
            RowDropped: The row holds no picture.
            PallavaError: The picture cannot be written.
        """
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes) or not content:
            raise RowDropped("malformed", "the row holds no picture")
        digest = hashlib.sha256(content).hexdigest()[:32]
        name = f"{folder}/{digest}{_ENDINGS.get(content[:2], '.jpg')}"
        if name not in self._written:
            self._write_file(self._root / name, content)
            self._written.add(name)
        return name

    def _write_file(self, path: Path, content: bytes) -> None:
        if path.is_file():
            return
        if not self._written:
            _LOGGER.warning("writing the pictures inside of the parquet files to %s", path.parent)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            os.utime(unfinished, (0, 0))  # as the name, the same on every machine: images are known by both
            unfinished.replace(path)
        except OSError as error:
            raise PallavaError(f"cannot write the pictures of the parquet files: '{path}': {error.strerror}") from None
        finally:
            unfinished.unlink(missing_ok=True)
