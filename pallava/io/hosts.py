"""Whether a host is this machine."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether a name or an address, without brackets, can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_here(url: str) -> bool:
    """Return whether a URL's host can only be this machine; such a URL is never to be asked by way of a proxy."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
