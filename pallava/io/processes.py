"""Processes: how many, a stream's work shared by several, a command run as a child, and locks between them."""

import errno
import os
import signal
import stat
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from pallava.errors import PallavaError

Value = TypeVar("Value")
Result = TypeVar("Result")

_WAITING = 4  # batches for each process: enough to keep it busy, few enough to keep memory flat
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_ENDS_WITH_STDIN = "PALLAVA_ENDS_WITH_STDIN"  # set for a child whose stdin its parent holds open


def batches(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Cut a stream into lists; the last may be shorter."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def map_ahead(
    executor: Executor, function: Callable[[Value], Result], values: Iterable[Value], most: int
) -> Iterator[Result]:
    """Yield function(value) for each value, in order; at most so many of them wait, are computed or are done ahead."""
    waiting: deque[Future[Result]] = deque()
    try:
        for value in values:
            waiting.append(executor.submit(function, value))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class WorkerPool:
    """Processes that start with the first work worth sharing, and stay until the pool is closed; 1 is this process."""

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise PallavaError(f"the number of workers must be at least 1, got {num_workers}")
        self._num_workers = num_workers
        self._executor: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Value], Result], values: Iterable[Value]) -> Iterator[Result]:
        """Yield function(value) for each value, in order, while reading no further ahead than needed.

        The function is at the top level of a module, since it is sent to the processes, and a value, such as a batch,
        is worth sending; a single one stays in this process.

        Raises:
            PallavaError: A worker was killed.
        """
        iterator = iter(values)
        head = list(islice(iterator, 2))
        if self._num_workers == 1 or len(head) < 2:  # starting processes takes longer
            yield from map(function, chain(head, iterator))
            return
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self._num_workers, get_context("spawn"), _start_worker)
        try:
            yield from map_ahead(self._executor, function, chain(head, iterator), _WAITING * self._num_workers)
        except BrokenProcessPool:
            raise PallavaError("a worker process was killed, perhaps for lack of memory; try --workers 1") from None

    def close(self) -> None:
        """End the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def map_in_order(function: Callable[[Value], Result], values: Iterable[Value], num_workers: int) -> Iterator[Result]:
    """Yield function(value) for each value, in order; see `WorkerPool`, which is closed at the end.

    Raises:
        PallavaError: There are fewer workers than one, or a worker was killed.
    """
    with closing(WorkerPool(num_workers)) as pool:
        yield from pool.map(function, values)


def usable_cores() -> frozenset[int]:
    """Return the numbers of the cores that this process may use: a scheduler may give each process its own."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def num_cores(at_most: int | None = None) -> int:
    """Return the number of cores that this process may use, or the bound if that is smaller."""
    cores = len(usable_cores())
    return cores if at_most is None else min(cores, at_most)


def default_num_workers(num_sharing: int = 1) -> int:
    """Return the default number of workers of each process that shares the cores: one for each core, 1 to 16."""
    return min(max(num_cores() // num_sharing, 1), 16)


def run_child(
    command: Sequence[str],
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
    *,
    log: str | Path | None = None,
) -> int:
    """Run a command to its end, and return its exit code: 128 plus the signal's number if a signal ended it.

    Each line of its stdout and stderr goes to `on_line`, with the line break, and to the file `log`. The child does
    not outlive this process: SIGTERM is passed on to it and its process group, an exception here terminates them, and
    a child that calls `end_with_parent` ends even if this process is killed.

    Raises:
        OSError: The program cannot be started, or the log cannot be written.
    """
    ours = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", _ENDS_WITH_STDIN: "1"}
    variables = {**(os.environ if environment is None else environment), **ours}
    process = subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.PIPE,  # nothing is written: a child sees it close when this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a process group, so that all its processes can be terminated
    )
    assert process.stdout is not None
    with (
        process,
        _terminated_at_exit(process),
        open(log or os.devnull, "w", buffering=1, encoding="utf-8") as out,  # noqa: PTH123
    ):
        for line in process.stdout:
            out.write(line)
            on_line(line)
        code = process.wait()
    return code if code >= 0 else 128 - code


def end_with_parent() -> None:
    """End this process when the one that started it by `run_child` is gone, even by a kill; otherwise do nothing.

    The processes that this one starts share its stdin, and can call this function too.
    """
    if os.environ.get(_ENDS_WITH_STDIN) and stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_stdin, daemon=True).start()


@contextmanager
def hold_lock(path: str | Path, refusal: str) -> Iterator[None]:
    """Keep other processes off within the context; the lock also ends with this process, be it by a kill.

    Where another holds the lock, the `refusal` is raised. On a file system without locks, as some clusters have them,
    nobody is kept off. The file is created, and stays.
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


@contextmanager
def _terminated_at_exit(process: subprocess.Popen[str]) -> Iterator[None]:
    def terminate(*_: object) -> None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGTERM)
            else:  # on Windows, where the child's own processes end with their stdin
                process.terminate()

    before = None
    with suppress(ValueError):  # only the main thread can handle signals
        before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if process.poll() is None:
            terminate()
            process.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends the pool
    threading.Thread(target=_end_with_pool, daemon=True).start()  # a killed parent ends no pool


def _end_with_pool() -> None:
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)
