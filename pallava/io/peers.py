"""Processes of one training that notice when another is gone, be it killed, or its whole machine.

Each holds a TCP connection to the first. The kernel closes the connections of a killed process, and its keep-alive
finds a dead machine, whatever the processes compute meanwhile. A collective of gloo or NCCL would wait for its timeout.
"""

import hmac
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from pallava.errors import PallavaError

_IDLE, _INTERVAL, _PROBES = 10, 5, 4  # seconds and number of the kernel's keep-alive: a dead machine is found in 30 s
_BYE = b"bye\n"
_HANDSHAKE, _LONGEST = 60.0, 1000  # seconds, and bytes of a line
NOTICE = 1.2 * (_IDLE + _INTERVAL * _PROBES)
"""Time in seconds after which a process that is gone has been noticed."""


class Meeting(NamedTuple):
    """Where the first process waits for the others."""

    address: str
    port: int
    token: str  # strangers do not have it


def describe_process(rank: int) -> str:
    """Return the name of this process for the others."""
    return f"process {rank} (host {socket.gethostname()}, pid {os.getpid()})"


def end_process(message: str) -> None:
    """End this process at once with exit code 1, and say why."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(1)


def leave_to_watch(error: BaseException) -> None:
    """Wait where another process may be gone, by an error of gloo or NCCL: the watch names it, and ends this one."""
    if any(word in str(error) for word in ("gloo", "NCCL")):
        time.sleep(NOTICE)


class PeerWatch:
    """Watches the other processes until it is closed; `on_loss` gets a sentence that names the one that is gone."""

    def __init__(self, rank: int, on_loss: Callable[[str], object] = end_process) -> None:
        self._name, self._on_loss = describe_process(rank), on_loss
        self._is_closed = False
        self._server: socket.socket | None = None
        self._connections: list[socket.socket] = []

    def host(self, address: str, num_others: int) -> Meeting:
        """Wait for the others in the background; to be called by the first process, which passes on the result."""
        if address in ("127.0.0.1", "localhost"):
            self._server = socket.create_server((address, 0), backlog=num_others)
        elif socket.has_dualstack_ipv6():
            self._server = socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=num_others, dualstack_ipv6=True
            )
        else:
            self._server = socket.create_server(("", 0), backlog=num_others)
        meeting = Meeting(address, self._server.getsockname()[1], secrets.token_hex(16))
        threading.Thread(target=self._accept, args=(self._server, meeting.token), daemon=True).start()
        return meeting

    def join(self, meeting: Meeting) -> None:
        """Connect to the first process, and watch it in the background.

        Raises:
            PallavaError: The first process cannot be reached.
        """
        try:
            connection = socket.create_connection((meeting.address, meeting.port), timeout=_HANDSHAKE)
            connection.sendall(f"{meeting.token} {self._name}\n".encode())
            host = _read_line(connection).decode()
        except OSError as error:
            raise PallavaError(
                f"{self._name} cannot reach the first process at {meeting.address}, port {meeting.port}: {error}; the "
                "nodes of a training must reach each other at all ports"
            ) from None
        self._watch(connection, host)

    def close(self) -> None:
        """Say goodbye: from now on the ends of others are none of our business."""
        self._is_closed = True
        for connection in self._connections:
            with suppress(OSError):
                connection.sendall(_BYE)
                connection.shutdown(socket.SHUT_WR)
        if self._server is not None:
            self._server.close()

    def _accept(self, server: socket.socket, token: str) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                threading.Thread(target=self._greet, args=(connection, token), daemon=True).start()

    def _greet(self, connection: socket.socket, token: str) -> None:
        """Watch a process that has the token; a stranger, even a silent one, keeps no process waiting."""
        connection.settimeout(_HANDSHAKE)
        with suppress(OSError):
            given, _, name = _read_line(connection).decode(errors="replace").partition(" ")
            if hmac.compare_digest(given.encode(), token.encode()):
                connection.sendall(f"{self._name}\n".encode())
                self._watch(connection, name)
                return
        connection.close()

    def _watch(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {"KEEPIDLE": _IDLE, "KEEPINTVL": _INTERVAL, "KEEPCNT": _PROBES}
        for option, value in options.items():
            if hasattr(socket, f"TCP_{option}"):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)
        self._connections.append(connection)
        threading.Thread(target=self._wait, args=(connection, name), daemon=True).start()

    def _wait(self, connection: socket.socket, name: str) -> None:
        try:
            line = _read_line(connection)
        except OSError:
            line = b""
        if self._is_closed or line == _BYE.strip():
            return
        loss = line.decode(errors="replace") or f"{name} is gone"  # a line is the first process's report of another
        for other in self._connections if self._server is not None else ():
            with suppress(OSError):
                other.sendall(f"{loss}\n".encode())
        self._on_loss(loss)


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line.strip()
