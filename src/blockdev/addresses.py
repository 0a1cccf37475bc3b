"""ADDR:PORT as people type it."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from blockdev.errors import Busy, InvalidArgument

_NAMED = {"": "0.0.0.0", "localhost": "127.0.0.1"}


@dataclass(frozen=True)
class Address:
    host: str  # an IPv4 or IPv6 address, without brackets
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """127.0.0.1:10809, [::1]:10809, localhost:10809 or :10809 (all IPv4 addresses).  Raises InvalidArgument.

        default_port: the one of an address that is written without; None: it must be written with one.
        """
        if default_port is not None and _is_bare(text):
            return cls(_bare(text), default_port)
        host, colon, port = text.rpartition(":")
        bad = InvalidArgument(f"{text!r} is not an address: write ADDR:PORT, like 127.0.0.1:10809 or [::1]:10809")
        if not colon or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise bad
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        host = _NAMED.get(host, host)
        try:
            return cls(str(ipaddress.ip_address(host)), int(port))
        except ValueError:
            raise bad from None

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    def is_unspecified(self) -> bool:
        """Whether it stands for all addresses of the machine."""
        return ipaddress.ip_address(self.host).is_unspecified

    def listen(self) -> socket.socket:
        """A listening socket there.  Raises Busy."""
        # the protocol by name: asyncio sets TCP_NODELAY for no other, and an answer's body then waits 40 ms for its head
        listener = socket.socket(self.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
            listener.listen()
        except OSError as error:
            listener.close()
            raise Busy(f"cannot listen on {self}: {error.strerror}; choose another port") from None
        return listener

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _bare(text: str) -> str:
    """An address without a port, such as [::1], ::1 or localhost."""
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1]
    return _NAMED.get(text, text) if text else text


def _is_bare(text: str) -> bool:
    try:
        ipaddress.ip_address(_bare(text))
    except ValueError:
        return False
    return True
