"""Work on a stream by several processes, whose results come in the stream's order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

from pallava.errors import PallavaError

Value = TypeVar("Value")
Result = TypeVar("Result")

_WAITING = 4  # batches for each process: enough to keep it busy, few enough to keep memory flat


def batches(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Cuts a stream into lists; the last may be shorter."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def map_in_order(function: Callable[[Value], Result], values: Iterable[Value], num_workers: int) -> Iterator[Result]:
    """Yields function(value) of each value, in order, while reading no further ahead than needed.

    Args:
        function: Of a module, since it is sent to the processes.
        values: Large enough each to be worth sending, such as batches.
        num_workers: Processes; 1 works in this one, as does a stream of a single value.

    Raises:
        PallavaError: There are fewer workers than one, or one was ended from outside.
    """
    if num_workers < 1:
        raise PallavaError(f"the number of workers is {num_workers}; expected 1 or more")
    iterator = iter(values)
    head = list(islice(iterator, 2))
    if num_workers == 1 or len(head) < 2:  # starting processes takes longer
        yield from map(function, chain(head, iterator))
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for value in chain(head, iterator):
            waiting.append(pool.submit(function, value))
            if len(waiting) >= _WAITING * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise PallavaError("a worker was ended from outside; is there enough memory? Try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores(at_most: int | None = None) -> int:
    """Return the number of cores that this process may use, or the bound if that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if at_most is None else min(cores, at_most)


def default_num_workers() -> int:
    """Return the default number of worker processes: one for each core, at most 16."""
    return num_cores(at_most=16)


def start_worker() -> None:
    """Of a pool's process: leaves Ctrl-C to the parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent ends no pool, and its workers would wait for ever."""
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)
