"""Processes that watch each other: who is gone is named by all that are left, and nobody else is."""

import multiprocessing
import os
import socket
import time
from contextlib import contextmanager

import pytest

from pallava.errors import PallavaError
from pallava.io.launch import free_port
from pallava.io.peers import Meeting, PeerWatch

SECONDS = 10  # most that a report may take on a busy machine
QUIET = 0.5  # seconds after which none comes any more


def keep_watch(rank: int, pipe) -> None:
    """Watches until it is told to say goodbye, and lives until it is killed."""
    watch = PeerWatch(rank, on_loss=lambda loss: pipe.send(f"loss: {loss}"))
    if rank == 0:
        pipe.send(watch.host("127.0.0.1", 2))
    else:
        watch.join(pipe.recv())
        pipe.send("joined")
    pipe.recv()
    watch.close()
    pipe.send("closed")
    time.sleep(60)


@contextmanager
def three_processes():
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(3):
        pipe, end = context.Pipe()
        pipes.append(pipe)
        processes.append(context.Process(target=keep_watch, args=(rank, end), daemon=True))
        processes[-1].start()
        end.close()
    try:
        meeting = receive(pipes[0])
        for pipe in pipes[1:]:
            pipe.send(meeting)
        assert [receive(pipe) for pipe in pipes[1:]] == ["joined"] * 2
        yield processes, pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def receive(pipe, seconds: float = 60.0):
    assert pipe.poll(seconds), "nothing came in time"
    return pipe.recv()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_killed_one_is_named_by_all_others(victim):
    with three_processes() as (processes, pipes):
        processes[victim].kill()
        name = f"process {victim} (host {socket.gethostname()}, pid {processes[victim].pid}) is gone"
        for rank in {0, 1, 2} - {victim}:
            assert receive(pipes[rank], SECONDS) == f"loss: {name}"


def test_who_said_goodbye_is_not_missed():
    with three_processes() as (processes, pipes):
        for pipe in pipes:
            pipe.send("close")
        assert [receive(pipe) for pipe in pipes] == ["closed"] * 3
        for rank in (1, 0):
            processes[rank].kill()
            processes[rank].join()
        assert not pipes[2].poll(QUIET)


def test_strangers_are_turned_away_and_hold_nobody_up():
    losses: list[str] = []
    first, second = PeerWatch(0, losses.append), PeerWatch(1, losses.append)
    meeting = first.host("127.0.0.1", 1)
    at = (meeting.address, meeting.port)
    with socket.create_connection(at), socket.create_connection(at, timeout=SECONDS) as stranger:  # one says nothing
        for words in (b"GET / HTTP/1.1\r\n", b"\xff\xfe\n"):
            with socket.create_connection(at, timeout=SECONDS) as other:
                other.sendall(words)
                assert other.recv(100) == b""
        second.join(meeting)
        stranger.sendall(b"0" * 32 + b" process 1\n")
        assert stranger.recv(100) == b""
    time.sleep(QUIET)
    assert losses == []
    second.close()
    first.close()


def test_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    first, second = PeerWatch(0), PeerWatch(1)
    second.join(first.host("::1", 1))
    second.close()
    first.close()


def test_an_unreachable_first_process_is_one_sentence():
    port = free_port()
    with pytest.raises(PallavaError) as caught:
        PeerWatch(3).join(Meeting("127.0.0.1", port, ""))
    assert f"process 3 (host {socket.gethostname()}, pid {os.getpid()})" in str(caught.value)
    assert f"127.0.0.1, port {port}" in str(caught.value)
