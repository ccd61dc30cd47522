"""Run a command where no interface but loopback exists: ``unshare --net --mount python enter.py FOLDER COMMAND ...``.

In FOLDER, `lookups` gets every name that any code asked a name server for, a line each, and `unrouted` the kernel's
count of connections and packets for which it found no way out. So attempts of code that is not Python are found as
well, and those whose errors are swallowed.
"""

import fcntl
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_SERVER = ("127.0.0.53", 53)
_HEAD = 12  # bytes of a question to a name server before the name
_NO_SUCH_NAME = b"\x81\x83"


def bring_up_loopback() -> None:
    """Switch on the one interface, which a new namespace has switched off."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def answer_lookups(folder: Path) -> None:
    """Become the machine's name server, which knows nothing and writes down what it is asked."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(_SERVER)
    (folder / "resolv.conf").write_text(f"nameserver {_SERVER[0]}\nsearch .\n")
    subprocess.run(["mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf"], check=True)

    def answer() -> None:
        with (folder / "lookups").open("a", buffering=1) as asked:
            while True:
                question, client = server.recvfrom(4096)
                asked.write(_name_in(question) + "\n")
                server.sendto(question[:2] + _NO_SUCH_NAME + question[4:6] + bytes(6) + question[_HEAD:], client)

    threading.Thread(target=answer, daemon=True).start()


def _name_in(question: bytes) -> str:
    labels, rest = [], question[_HEAD:]
    while rest[0]:
        labels.append(rest[1 : rest[0] + 1].decode(errors="replace"))
        rest = rest[rest[0] + 1 :]
    return ".".join(labels)


def num_unrouted() -> int:
    """The number of connections and packets so far that had no way out, of IPv4 and IPv6."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:")
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(dict(zip(names, values, strict=True))["OutNoRoutes"]) + int(six.get("Ip6OutNoRoutes", 0))


def main(folder: Path, *command: str) -> int:
    """Run the command and return its exit code."""
    interfaces = [name for _, name in socket.if_nameindex()]
    if interfaces != ["lo"]:
        sys.exit(f"the namespace must have the interface lo alone, got {interfaces}")
    bring_up_loopback()
    answer_lookups(folder)
    code = subprocess.call(command)
    (folder / "unrouted").write_text(str(num_unrouted()))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
