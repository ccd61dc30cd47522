"""The one thread that computes: requests that wait are answered in one batch, and others wait in a line with an end."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pallava.errors import PallavaError
from pallava.serving.chat_model import ChatModel
from pallava.serving.replies import ChatRequest, Reply, TogetherError, UnavailableError

_LOGGER = logging.getLogger(__name__)
_CLOSING = "the server is closing; try again in a while"
_GATHER = 0.01  # seconds in which requests that come together are put into one batch
_GATHER_AGAIN = 0.1  # the same where several clients are about: those just answered often ask again at once
_GATHER_EXPECTED = 0.3  # seconds at most that a batch waits for requests whose images are still being opened


@dataclass(eq=False)
class _Job:
    work: ChatRequest | Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    future: Future[Any] = field(default_factory=Future)


class Scheduler:
    """Answers requests in the order in which they came, greedy ones that wait together in one batch.

    A request that draws its words has a batch of its own, so that its seed decides them.

    Args:
        chat: Model that answers.
        max_batch: Largest number of requests in a batch.
        max_waiting: Largest number of requests that wait.
        num_threads: Number of batches at a time, if the model can take several.
        on_batch: Called with the size of each batch before it is computed.
    """

    def __init__(
        self,
        chat: ChatModel,
        *,
        max_batch: int = 16,
        max_waiting: int = 64,
        num_threads: int = 1,
        on_batch: Callable[[int], Any] = lambda size: None,
    ) -> None:
        self._chat, self._max_batch, self._max_waiting, self._on_batch = chat, max_batch, max_waiting, on_batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._num_expected = 0
        self._last_size = 0
        self._is_closed = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Return the number of requests that no batch has taken yet."""
        return sum(not job.future.cancelled() for job in tuple(self._waiting))

    @contextmanager
    def expect(self) -> Iterator[None]:
        """Let a batch wait, for a moment, for the request that is made and submitted within the context."""
        with self._changed:
            self._num_expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_expected -= 1
                self._changed.notify_all()

    def submit(self, request: ChatRequest, **options: Any) -> "Future[Reply]":
        """Put a request into the line; the options are those of `ChatModel.reply`.

        Raises:
            UnavailableError: Too many requests wait, or the scheduler is closed.
        """
        return self._put(_Job(request, options))

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Put a call into the line, which has the model for itself; errors are those of `submit`."""
        return self._put(_Job(function))

    def close(self) -> None:
        """End after what is being computed; what still waits fails with a `UnavailableError`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, job: _Job) -> "Future[Any]":
        with self._changed:
            self._waiting = deque(each for each in self._waiting if not each.future.cancelled())
            if self._is_closed:
                raise UnavailableError(_CLOSING)
            if len(self._waiting) >= self._max_waiting:
                raise UnavailableError(f"{len(self._waiting)} requests wait already; try again in a while")
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._settle([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _settle(self, batch: list[_Job]) -> None:
        try:
            for job, result in zip(batch, self._compute(batch) if batch else [], strict=True):
                job.future.set_result(result)
        except TogetherError:
            for job in batch:
                self._settle([job])
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):  # of a reading, or of what an engine is sent
                error = UnavailableError("the device has too little memory; show fewer images, or try again in a while")
            elif not isinstance(error, PallavaError):
                _LOGGER.exception("a batch of %d failed", len(batch))
            for job in batch:
                job.future.set_exception(error)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for requests; return those of the next batch, perhaps none, or None once the scheduler is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            has_several = max(self._last_size, len(self._waiting)) > 1
            self._changed.wait_for(self._is_full, timeout=_GATHER_AGAIN if has_several else _GATHER)
            self._changed.wait_for(lambda: self._is_full() or not self._num_expected, timeout=_GATHER_EXPECTED)
            if self._is_closed:
                self._refuse_waiting()
                return None
            batch = list[_Job]()  # another thread may have taken what there was
            while self._waiting and len(batch) < self._max_batch and _go_together([*batch, self._waiting[0]]):
                batch.append(self._waiting.popleft())
            self._last_size = len(batch)
            return batch

    def _is_full(self) -> bool:
        """Return whether the next batch cannot grow: the first request may have to go alone."""
        first = self._waiting[0] if self._waiting else None
        is_alone = first is not None and not _go_together([first, self._waiting[min(1, len(self._waiting) - 1)]])
        return len(self._waiting) >= self._max_batch or is_alone or self._is_closed

    def _refuse_waiting(self) -> None:
        while self._waiting:
            if (future := self._waiting.popleft().future).set_running_or_notify_cancel():
                future.set_exception(UnavailableError(_CLOSING))

    def _compute(self, batch: list[_Job]) -> list[Any]:
        work = batch[0].work
        if not isinstance(work, ChatRequest):
            return [work()]
        self._on_batch(len(batch))
        requests = [job.work for job in batch if isinstance(job.work, ChatRequest)]
        return self._chat.reply(requests, **batch[0].options)


def _go_together(jobs: list[_Job]) -> bool:
    return len(jobs) == 1 or all(isinstance(job.work, ChatRequest) and not job.options for job in jobs)
