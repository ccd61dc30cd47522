"""torchrun for our commands: ``python -m pallava.io.torchrun``, with torchrun's own arguments.

Where a process fails torchrun adds a page of its own, with its traceback, to what that process has said. Here the
process has the last word, and its exit code is the command's.
"""

import logging
import sys
from collections.abc import Sequence

_BY_SIGNAL = 128  # what shells add to the signal's number


def run_processes(arguments: Sequence[str]) -> tuple[int, int] | None:
    """Runs torchrun to the end.

    Args:
        arguments: Those of torchrun.

    Returns:
        None, or (rank, exit code) of the first process that failed; a negative code is a signal's.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(list(arguments))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        return rank, failure.exitcode
    return None


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun; gives the exit code of the first process that failed, 0 if none did."""
    failed = run_processes(arguments)
    if failed is None:
        return 0
    rank, code = failed
    if code < 0:
        sys.stderr.write(f"error: process {rank} was ended by signal {-code}\n")
    return code if code > 0 else _BY_SIGNAL - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
