"""Record and refuse what a Python process would connect to or look up elsewhere than on this machine.

`offline.watch` copies this file as ``sitecustomize.py`` to a folder of PYTHONPATH, so that it runs in every process
that a command starts, before anything else. The record is in files: an attempt whose error the code swallows counts.
"""

import ipaddress
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

_RECORD = Path(os.environ["PALLAVA_TEST_RECORD"])
_ADDRESSED = ("socket.connect", "socket.sendto", "socket.sendmsg")
_NAMED = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_FRAMES = 40  # of an attempt's stack


def is_local(host: Any) -> bool:
    """Whether a host is this machine: loopback, any of its addresses, or a name that it answers itself.

    Its own name counts: torchrun looks it up for its log (`_get_fq_hostname`), which says nothing to anybody else.
    """
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "ip6-localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def check(event: str, arguments: tuple[Any, ...]) -> None:
    """Record and refuse a foreign host; every other event passes."""
    if event in _ADDRESSED:
        opened, target = arguments
        if opened.family not in (socket.AF_INET, socket.AF_INET6) or target is None:
            return  # a Unix socket, the kernel's netlink; or a connected one, whose `connect` was seen
        host = target[0]
    elif event in _NAMED:
        host = arguments[0][0] if event == "socket.getnameinfo" else arguments[0]
    else:
        return
    if not is_local(host):
        frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack()[:-1]]
        _append("attempts", {"event": event, "host": str(host), "command": sys.orig_argv, "stack": frames[-_FRAMES:]})
        raise OSError(f"{event} of {host!r} is refused by the test")


def _append(name: str, line: Any) -> None:
    with (_RECORD / name).open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "sitecustomize":
    _append("processes", sys.orig_argv)
    sys.addaudithook(check)
