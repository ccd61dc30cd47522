"""A lock that a process holds on a file, and that ends with the process."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pallava.errors import PallavaError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def hold_lock(path: str | Path, refusal: str) -> Iterator[None]:
    """Keep other processes off within the context; the lock also ends with this process, be it by a kill.

    On a file system without locks, as some clusters have them, nobody is kept off. The file is created, and stays.

    Raises:
        PallavaError: Another process holds the lock; the message is the `refusal`.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise PallavaError(refusal) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
