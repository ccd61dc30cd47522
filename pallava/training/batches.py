"""Batches of a training: from any place of an epoch on, with workers that are named when they fail."""

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from multiprocessing import connection
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch.utils.data import DataLoader, SequentialSampler

from pallava.errors import PallavaError
from pallava.io.peers import end_process
from pallava.io.processes import default_num_workers, usable_cores
from pallava.training.interrupts import ignore_signals
from pallava.training.sampler import LengthSampler


class Batches:
    """The batches of a loader, whose order depends on the sampler's seed and the epoch alone.

    Args:
        loader: The loader, which from now on is iterated here only.
        seed: Seed of the workers' random numbers, to which the epoch is added.
        timeout: Time in seconds after which a worker that returns no batch ends this process.

    Raises:
        PallavaError: The data do not fill a batch, the sampler's order cannot be restored, or its batches have another
            size.
    """

    def __init__(self, loader: DataLoader, seed: int, timeout: float) -> None:
        if not len(loader):
            raise PallavaError("the data must fill at least one batch; give more rows or a smaller batch_size")
        sampler = _find_epochs(loader)
        if sampler is None and not isinstance(loader.sampler, SequentialSampler):
            name = type(loader.sampler).__name__
            raise PallavaError(
                f"the sampler must have set_epoch, by which a resumed run finds its place, but {name} has none; choose "
                "LengthSampler or DefaultSampler"
            )
        if isinstance(sampler, LengthSampler) and sampler.batch_size != loader.batch_size:
            raise PallavaError(
                f"train_dataloader.sampler.batch_size must be train_dataloader.batch_size, {loader.batch_size}, got "
                f"{sampler.batch_size}; set both alike"
            )
        self._loader, self._seed, self._timeout = loader, seed, timeout
        self._order = _Order(loader.batch_sampler)
        self._loading: Any = None
        self._workers: list[tuple[int, int | None]] = []  # process and exit code of each that the loader had
        self._hanging: str | None = None
        object.__setattr__(loader, "batch_sampler", self._order)  # a loader forbids to change it
        object.__setattr__(loader, "persistent_workers", False)  # each epoch's end with it
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)

    def iterate(self, start: int) -> Generator[Any]:
        """Yield batches from a number on, of one epoch after the other."""
        loader = self._loader
        epoch, position = divmod(start, len(loader))
        while True:
            if (sampler := _find_epochs(loader)) is not None:
                sampler.set_epoch(epoch)
            # The workers' seeds come from this generator, once an epoch: never from the one of the training.
            loader.generator = torch.Generator().manual_seed(self._seed + epoch)
            self._order.start(position)
            self._loading = iter(loader)
            try:
                while (batch := self._next_in_time()) is not None:
                    self._order.received += 1
                    yield batch
            finally:
                self._end_workers()
            epoch, position = epoch + 1, 0

    def _next_in_time(self) -> Any:
        """Return the epoch's next batch; None at its end."""
        # The loader's own timeout does not cover a worker that hangs while it hands over a batch.
        timer = threading.Timer(self._timeout, self._end_hanging)
        timer.daemon = True
        timer.start()
        try:
            return next(self._loading, None)
        except (OSError, EOFError):  # a worker's connection, which closes a moment before its exit code is known
            connection.wait([worker.sentinel for worker in getattr(self._loading, "_workers", [])], timeout=1)
            raise
        finally:
            timer.cancel()

    def _end_hanging(self) -> None:
        workers = self._note_workers()
        self._hanging = self._describe_worker()  # for the main thread, which may hear of the deaths first
        for worker in workers:
            worker.kill()
        end_process(self._hanging)

    def _note_workers(self) -> list[Any]:
        workers = getattr(self._loading, "_workers", [])
        self._workers = [(worker.pid, worker.exitcode) for worker in workers]
        return workers

    def _end_workers(self) -> None:
        """End the loader's workers, also those that hang: they ignore signals, and Python would wait for them."""
        workers = self._note_workers()
        self._loading = None
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises for each, wherever the main thread is
        try:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join(timeout=1)
        finally:
            signal.signal(signal.SIGCHLD, before)

    def describe_dead_worker(self) -> str | None:
        """Return which worker died or hangs, and at which rows; None if none does."""
        if self._hanging or not any(code for _, code in self._workers):
            return self._hanging
        return self._describe_worker()

    def _describe_worker(self) -> str:
        """Return which worker of the loader died or hangs, and at which rows."""
        count = len(self._workers)
        dead = [number for number, (_, code) in enumerate(self._workers) if code]
        number = dead[0] if dead else self._order.received % max(1, count)
        pid, code = self._workers[number] if count else (os.getpid(), 0)
        rows = ", ".join(map(str, self._order.next_expected(number, count)))
        name = f"worker {number} (pid {pid}) of the data loader"
        if code:
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            return (
                f"{name} died at rows {rows} ({reason}), perhaps for lack of memory or of shared memory; lower "
                "dataloader_num_workers, or give the machine more"
            )
        waited = f"has returned no batch for {self._timeout:.0f} s"
        return f"{name} {waited}, at rows {rows}; look at their images, and whether the disk responds"


class _Order:
    """A batch sampler that can begin in the middle of an epoch, and knows what its loader waits for."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._skipped = batches, 0
        self.received = 0  # number of batches of this epoch that came back
        self._given: deque[tuple[int, list[int]]] = deque(maxlen=1024)

    def start(self, position: int) -> None:
        self._skipped, self.received = position, 0
        self._given.clear()

    def next_expected(self, worker: int, num_workers: int) -> list[int]:
        """Return the rows that a worker reads now; workers take turns."""
        waiting = [rows for i, rows in self._given if i >= self.received and i % max(1, num_workers) == worker]
        return waiting[0] if waiting else []

    def __iter__(self) -> Iterator[list[int]]:
        for number, rows in enumerate(islice(self._batches, self._skipped, None)):
            self._given.append((number, rows))
            yield rows

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:  # mmengine asks for the sampler
        return getattr(self.__dict__["_batches"], name)


def choose_num_workers(dataloader: dict[str, Any]) -> dict[str, Any]:
    """Return a loader's config whose `num_workers`, if None, is the number of cores for each process that shares them.

    All processes must call it together.
    """
    if dataloader.get("num_workers", 0) is not None:
        return dataloader
    place = socket.gethostname(), usable_cores()
    chosen = dataloader.copy()
    chosen["num_workers"] = default_num_workers(all_gather_object(place).count(place))
    print_log(f"data loader: {chosen['num_workers']} worker(s) for each process", "current")
    return chosen


def _find_epochs(loader: DataLoader) -> Any:
    """Return the sampler whose order depends on the epoch, or None."""
    batches: Any = loader.batch_sampler
    samplers = (loader.sampler, getattr(batches, "sampler", None), batches)
    return next((sampler for sampler in samplers if hasattr(sampler, "set_epoch")), None)


def _start_worker(function: Any, worker: int) -> None:
    """Start a worker of the loader: it ends with its loader, not by a signal that a scheduler sends to everybody."""
    ignore_signals()
    if function is not None:
        function(worker)
