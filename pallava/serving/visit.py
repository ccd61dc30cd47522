"""What a request waits for, and the end of it."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request

from pallava.serving.replies import UnavailableError


class Visit:
    """A request on its way: what it waits for is given up once its client has gone, or its time is up.

    Args:
        request: It, whose body has been read.
        seconds: Its time, from now on.
    """

    def __init__(self, request: Request, seconds: float) -> None:
        self.pieces = asyncio.Queue[str | None]()  # of the answer; None once it is whole
        self.future = Future[Any]()  # what it waits for
        self._end, self._gone = time.monotonic() + seconds, threading.Event()
        self._watch = asyncio.create_task(_wait_until_gone(request))
        self._watch.add_done_callback(lambda _: self._leave())
        self._timer = asyncio.get_running_loop().call_later(seconds, lambda: self.future.cancel())

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._watch.cancel()  # which gives up what is not done

    def is_over(self) -> bool:
        """Return whether nobody waits any longer."""
        return self._gone.is_set() or time.monotonic() > self._end

    def follow(self, future: "Future[Any]") -> None:
        """Let this be what it waits for."""
        self.future = future
        if self.is_over():
            future.cancel()

    async def wait(self, submit: Callable[[], "Future[Any]"]) -> Any:
        """Return the result of another thread, which nothing is submitted to once the request is over."""
        self.follow(Future() if self.is_over() else submit())
        return await self.result()

    async def result(self) -> Any:
        """Return the result of `future`.

        Raises:
            UnavailableError: It does not come in time.
        """
        try:
            return await asyncio.shield(asyncio.wrap_future(self.future))
        except asyncio.CancelledError:
            if not self.future.cancelled():
                raise  # not the request was cancelled, but what waits for it
            raise UnavailableError("the request has waited too long; try again in a while") from None

    def _leave(self) -> None:
        self._gone.set()
        self.future.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
