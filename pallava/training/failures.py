"""A user's mistake under ``xtuner train`` ends in one sentence instead of a traceback."""

import sys
from types import TracebackType

from pallava.errors import PallavaError


def tell_in_a_sentence() -> None:
    """Makes Python print a user's mistake as ``error: ...``; the exit code stays 1, other errors as they were."""
    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentence = sentence_of(error, trace)
        if sentence is None:
            before(kind, error, trace)
        else:
            sys.stderr.write(f"error: {sentence}\n")

    sys.excepthook = tell


def sentence_of(error: BaseException, trace: TracebackType | None = None) -> str | None:
    """What a user did wrong, or None where an error is not known to be a user's.

    Args:
        error: What was raised.
        trace: Where; a part that a config describes wrongly fails in the call that builds it, and no deeper.
    """
    if isinstance(error, PallavaError):
        return _without_worker(str(error))
    if isinstance(error, FileNotFoundError):
        return f"{_without_worker(str(error))}: correct the path."
    if isinstance(error, (TypeError, KeyError)) and _innermost(trace) == "build_from_cfg":
        return f"a part of the config cannot be built: {error.args[0]}. Correct its type or its settings."
    if isinstance(error, ValueError) and "end should be larger than begin" in str(error):  # of mmengine's schedulers
        return "the warm-up is shorter than one step: give more rows or epochs, or set a larger warmup_ratio."
    return None


def _without_worker(message: str) -> str:
    """The message alone: a data loader puts its worker's whole traceback before it."""
    if "Original Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].split("Error: ", 1)[-1]


def _innermost(trace: TracebackType | None) -> str | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame.f_code.co_name
