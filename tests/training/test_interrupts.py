"""What a process does with the first signal, with its repetition, and with a second one."""

import os
import signal
import time

import pytest

from pallava.training import interrupts
from pallava.training.interrupts import SIGNALS, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted(number):
    before = signal.getsignal(number)
    with Interrupts() as noted:
        for _ in range(2):  # a launcher repeats what a scheduler has sent already
            os.kill(os.getpid(), number)
        assert noted.received == number
    assert signal.getsignal(number) == before


def test_a_second_one_ends_the_process(monkeypatch, capfd):
    monkeypatch.setattr(interrupts, "_SAME", 0.05)
    if not (pid := os.fork()):
        with Interrupts():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
    assert "SIGTERM" in capfd.readouterr().err


def test_they_can_be_ignored_to_the_end():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with Interrupts() as noted:
            noted.ignore()
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        assert not noted.received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
