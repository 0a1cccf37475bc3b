"""Where this home's exports are, as a hypervisor addresses them: whether an NBD source in a domain is ours.

Nothing is asked of anybody but the resolver, for names of hosts.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

NBD_PORT = "10809"
WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Place:
    """The NBD socket of a home, and its TCP listener."""

    nbd_socket: Path
    host: str | None = None  # an address; None: it listens on the socket only
    port: int = 0

    def has_socket(self, path: str) -> bool:
        return os.path.realpath(path) == os.path.realpath(self.nbd_socket)

    def has_host(self, host: str, port: str) -> bool:
        """Whether that host and port, as this machine understands them, are our listener."""
        if self.host is None or (port or NBD_PORT) != str(self.port):
            return False
        found = _addresses(host)
        if self.host in WILDCARDS:
            return any(_is_local(address) for address in found)
        return self.host in found


def is_remote(uri: str) -> bool:
    """Whether a libvirt URI names another machine: there, a Unix socket or a loopback address of a domain is not ours."""
    host = urlsplit(uri).hostname
    return host is not None and not any(_is_local(address) for address in _addresses(host))


def socket_of(uri: str) -> str:
    """The Unix socket of an nbd+unix URI."""
    for part in urlsplit(uri).query.split("&"):
        name, _, value = part.partition("=")
        if name == "socket":
            return unquote(value)
    return ""


def is_loopback(host: str) -> bool:
    return any(address.startswith("127.") or address == "::1" for address in _addresses(host))


def _addresses(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _is_local(address: str) -> bool:
    """Whether it is an address of this machine: only then can it be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
