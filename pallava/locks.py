"""One at a time: a file that a process keeps to itself for as long as it lives."""

import errno
import fcntl
from typing import IO, Any

from pallava.errors import PallavaError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def hold(file: IO[Any], refusal: str) -> None:
    """Keeps other processes off an open file until it is closed, be it by a kill.

    On a file system without locks, as some clusters have them, it keeps nobody off.

    Args:
        file: Is closed if another process holds it.
        refusal: What to say then.

    Raises:
        PallavaError: Another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise PallavaError(refusal) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
