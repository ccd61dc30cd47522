"""Signals that end a training after its current step: Ctrl-C, SIGTERM, and SIGUSR1, Slurm's warning."""

import os
import signal
import time
from types import FrameType

from pallava.io.launch import FORWARDED

EXIT_CODE = 75  # of a training that was interrupted and saved; sysexits' "temporary failure, try again"
SIGNALS = FORWARDED
_SAME = 1.0  # seconds within which a launcher repeats the signal that the scheduler has sent already


class Interrupts:
    """The first signal is noted, for the loop to end at its next step; a second one ends the process at once.

    Use it as a context, in the main thread.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal
        self._time = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > _SAME:
            message = f"error: a second signal, {signal.Signals(number).name}; stopped without a checkpoint\n"
            os.write(2, message.encode())  # sys.stderr raises if the signal came while the process was writing to it
            os._exit(128 + number)

    def ignore(self) -> None:
        """Ignore signals until the process ends: what it does last must not be cut short."""
        ignore_signals()
        self._before = {}


def ignore_signals() -> None:
    """Ignore the signals that end a training."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
