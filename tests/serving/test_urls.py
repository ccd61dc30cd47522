"""Pictures on other hosts: allowed by name, public, and read from the address that was checked."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from pallava.image_sources import ImageError
from pallava.serving.urls import resolve_url

HOST = "images.example"


class _Pictures(http.server.BaseHTTPRequestHandler):
    def drip(self, start: bytes) -> None:
        with suppress(OSError):
            self.wfile.write(start)
            for _ in range(100):
                time.sleep(0.1)
                self.wfile.write(b"X: y\r\n")

    def do_GET(self) -> None:
        if self.path in ("/slow-head", "/slow-body", "/silent"):
            time.sleep(10 * (self.path == "/silent"))
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 900\r\n\r\n" * (self.path == "/slow-body"))
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png?x=1")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/a.png?x=1" else 404)
        self.end_headers()
        self.wfile.write(f"{self.headers['Host']} {'x' * 100}".encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Addresses that are connected to; behind all of them is a server on this machine."""
    found: list[Any] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def note(address: Any, timeout: float) -> socket.socket:
            found.append(address)
            connection = socket.socket()
            connection.settimeout(timeout)
            connection.connect(("127.0.0.1", server.server_port))
            return connection

        monkeypatch.setattr(socket, "create_connection", note)
        yield found
        server.shutdown()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, type: [(2, type, 6, "", (each, port)) for each in addresses]
    )


def test_a_public_picture_is_read_from_the_address_that_was_checked(
    connections: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    content = resolve_url(f"http://{HOST.upper()}/a.png?x=1", {HOST}, 1000)
    assert isinstance(content, bytes)
    assert content.startswith(HOST.encode())
    assert connections == [("93.184.216.34", 80)]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1",
     "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1", "::ffff:0:7f00:1", "fec0::1", "2001:0:7f00:1::1",
     "ff0e::1", "::"],
)  # fmt: skip
def test_a_private_address_is_never_connected_to(
    connections: list[Any], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Neither as the only one, nor beside a public one."""
    for addresses in ([address], ["93.184.216.34", address]):
        resolve_to(monkeypatch, *addresses)
        with pytest.raises(ImageError, match="not public"):
            resolve_url(f"http://{HOST}/a.png?x=1", {HOST}, 1000)
    assert not connections


@pytest.mark.parametrize("address", ["2606:2800::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1", "::ffff:93.184.216.34"])
def test_a_public_address_in_other_forms(connections: list[Any], monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolve_to(monkeypatch, address)
    assert resolve_url(f"http://{HOST}/a.png?x=1", {HOST}, 1000)
    assert connections == [(address, 80)]


@pytest.mark.parametrize("path", ["slow-head", "slow-body", "silent"])
def test_a_host_that_takes_its_time(connections: list[Any], monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The whole picture has a time, not each of its bytes."""
    resolve_to(monkeypatch, "93.184.216.34")
    monkeypatch.setattr("pallava.serving.urls._TIMEOUT", 0.6)
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"0\.6 seconds"):
        resolve_url(f"http://{HOST}/{path}", {HOST}, 1000)
    assert time.monotonic() - start < 5, "the host takes 10 seconds"
    assert len(connections) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        f"http://{HOST}.evil.example/a.png",
        f"http://evil.example/{HOST}",
        f"http://{HOST}@evil.example/a.png",
        f"ftp://{HOST}/a.png",
        f"file://{HOST}/etc/passwd",
        f"//{HOST}/a.png",
        "http://[::1",
        f"http://{HOST}:port/a.png",
        "",
    ],
)
def test_other_urls_are_refused_unread(connections: list[Any], monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    with pytest.raises(ImageError, match="data: URL"):
        resolve_url(url, {HOST}, 1000)
    assert not connections


@pytest.mark.parametrize(("path", "said"), [("moved", "302"), ("nowhere", "404"), ("a.png?x=1", "more than 50 bytes")])
def test_what_cannot_be_read(connections: list[Any], monkeypatch: pytest.MonkeyPatch, path: str, said: str) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    with pytest.raises(ImageError, match=said):
        resolve_url(f"http://{HOST}/{path}", {HOST}, 50)
    assert len(connections) == 1


def test_a_data_url_stays_as_it_is() -> None:
    assert resolve_url("DATA:image/png;base64,AAAA", (), 10) == "DATA:image/png;base64,AAAA"
