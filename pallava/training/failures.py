"""A user's mistake under ``xtuner train`` ends in one sentence instead of a traceback."""

import sys
from types import TracebackType

from pallava.errors import PallavaError


def tell_in_a_sentence() -> None:
    """Makes Python print `PallavaError` as ``error: ...``; the exit code stays 1, other errors as they were."""
    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, PallavaError):
            sys.stderr.write(f"error: {sentence_of(error)}\n")
        else:
            before(kind, error, trace)

    sys.excepthook = tell


def sentence_of(error: PallavaError) -> str:
    """The message alone: a data loader puts its worker's whole traceback before it."""
    message = str(error)
    if "Original Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].split("Error: ", 1)[-1]
