"""Pictures that a client names by a URL: `data:` ones, and those on hosts that the owner of the server allows.

A server that fetches what strangers name can be made to read its own network. So the host must be allowed by name, all
of its addresses must be public, the connection goes to the very address that was checked, and nothing is redirected.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from pallava.image_sources import ImageError, name_of

_TIMEOUT = 20.0  # seconds for the whole picture
_CHUNK_BYTES = 1 << 16
# IPv6 addresses that end with one of IPv4: compatible, mapped, translated (SIIT), of NAT64.
_EMBEDDING = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))


def resolve_url(url: str, allowed_hosts: Collection[str], max_bytes: int) -> str | bytes:
    """Return a `data:` URL as it is, and what any other one holds.

    Raises:
        ImageError: The URL is of another kind, its host is not allowed or not public, or it cannot be read.
    """
    if url[:5].lower() == "data:":
        return url
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise ImageError("an image_url must be a data: URL, got one that cannot be read") from None
    is_remote = parts.scheme in ("http", "https") and host
    if not is_remote or host not in allowed_hosts:
        advice = (
            "the server's owner can allow its host by --allow-url" if is_remote else "read the file, and send its bytes"
        )
        raise ImageError(f"an image_url must be a data: URL, got {name_of(url[:100])}; {advice}")
    try:
        return _fetch(
            parts.scheme, host, port, f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", max_bytes
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"cannot read image {name_of(url[:100])}: {error or type(error).__name__}") from None


def _fetch(scheme: str, host: str, port: int | None, path: str, max_bytes: int) -> bytes:
    port = port or (443 if scheme == "https" else 80)
    end = time.monotonic() + _TIMEOUT
    opened = socket.create_connection((_public_address(host, port), port), timeout=_TIMEOUT)
    connection = http.client.HTTPConnection(host, port)
    if scheme == "https":
        secure = ssl.create_default_context()
        opened = secure.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
    with opened, _end_at(end, opened):
        if isinstance(opened, ssl.SSLSocket):
            opened.do_handshake()
        connection.sock = opened
        connection.request("GET", path, headers={"Accept": "image/*"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"the host answers {answer.status}, and redirections are not followed")
        content = bytearray()
        while chunk := answer.read(_CHUNK_BYTES):
            content += chunk
            if len(content) > max_bytes:
                raise OSError(f"it has more than {max_bytes} bytes")
    return bytes(content)


@contextmanager
def _end_at(end: float, connection: socket.socket) -> Iterator[None]:
    """End a connection at some time: its own timeout is that of each piece, of which a head alone may have many."""

    def shut() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(end - time.monotonic(), shut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if time.monotonic() > end:
            raise OSError(f"it takes longer than {_TIMEOUT:g} seconds") from None


def _public_address(host: str, port: int) -> str:
    """Return an address of a host, all of whose addresses are public."""
    addresses = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address)):
            raise OSError(f"its host has the address {address}, which is not public")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _EMBEDDING):
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return _is_public(address.sixtofour)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast
