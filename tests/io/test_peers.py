"""Processes that notice when another is gone, and strangers that do not disturb them."""

import socket
import time

from pallava.io.peers import PeerWatch


def wait_for(condition, limit=10):
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def make_pair(losses):
    first, second = (PeerWatch(rank, on_loss=losses[rank].append) for rank in (0, 1))
    return first, second, first.host("127.0.0.1", 1)


def test_a_loss_is_named_and_a_goodbye_is_not():
    for says_goodbye in (True, False):
        losses = ([], [])
        first, second, meeting = make_pair(losses)
        second.join(meeting)
        assert wait_for(lambda first=first: first._connections)
        if says_goodbye:
            second.close()
        else:  # as the kernel does for a killed process
            second._connections[0].shutdown(socket.SHUT_RDWR)
        assert bool(wait_for(lambda losses=losses: losses[0], limit=1)) is not says_goodbye
        assert all("process 1 (host " in loss for loss in losses[0])
        first.close()


def test_strangers_keep_no_process_waiting():
    """A silent one, one that leaves, and one with another token."""
    losses = ([], [])
    first, second, meeting = make_pair(losses)
    strangers = [socket.create_connection((meeting.address, meeting.port)) for _ in range(3)]
    strangers[1].close()
    strangers[2].sendall("wrong é\n".encode())
    time.sleep(0.2)
    start = time.monotonic()
    second.join(meeting)
    assert time.monotonic() - start < 5
    assert wait_for(lambda: len(first._connections) == 1)
    strangers[0].close()
    assert losses == ([], [])
    for watch in (second, first):
        watch.close()
