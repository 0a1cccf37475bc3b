"""Network addresses as people write them, HOST:PORT with an IPv6 address in brackets; and listening at one."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import NamedTuple

from blockdev.errors import Busy, InvalidArgument

_NAMED = {"": "0.0.0.0", "localhost": "127.0.0.1"}
_ENDPOINT = re.compile(r"\[([\w:.%-]+)\](?::(\d{1,5}))?|([^:\s\[\]]+)(?::(\d{1,5}))?|([0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[\w.%:-]*)")


def bracketed(host: str) -> str:
    """As it is written before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def show_address(host: str, port: int | str) -> str:
    """192.0.2.7:10810, [2001:db8::7]:10810."""
    return f"{bracketed(host)}:{port}"


def split_address(text: str) -> tuple[str, str]:
    """What is before the last colon, without brackets, and what is behind it: the inverse of `show_address`."""
    host, _, port = text.rpartition(":")
    return (host[1:-1] if host.startswith("[") and host.endswith("]") else host), port


class Endpoint(NamedTuple):
    """Where another home listens."""

    host: str
    port: int | None  # None: the usual one


def parse_endpoint(text: str) -> Endpoint:
    """`b.example.org`, `192.0.2.7:10811`, `[2001:db8::7]:10811`.  Raises InvalidArgument."""
    match = _ENDPOINT.fullmatch(text.strip())
    port = None if match is None else match[2] or match[4]
    if match is None or (port is not None and not 0 < int(port) < 65536):
        raise InvalidArgument(f"{text!r} is no place to reach: write HOST or HOST:PORT, like 192.0.2.7:10810 or [2001:db8::7]:10810")
    return Endpoint(match[1] or match[3] or match[5], None if port is None else int(port))


@dataclass(frozen=True)
class Address:
    """Where something of this machine listens."""

    host: str  # an IPv4 or IPv6 address, without brackets
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """127.0.0.1:10809, [::1]:10809, localhost:10809 or :10809 (all IPv4 addresses).  Raises InvalidArgument.

        default_port: the one of an address that is written without; None: it must be written with one.
        """
        if default_port is not None and _is_bare(text):
            return cls(_bare(text), default_port)
        host, port = split_address(text)
        bad = InvalidArgument(f"{text!r} is not an address: write ADDR:PORT, like 127.0.0.1:10809 or [::1]:10809")
        if ":" not in text or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise bad
        host = _NAMED.get(host, host)
        try:
            return cls(str(ipaddress.ip_address(host)), int(port))
        except ValueError:
            raise bad from None

    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def is_unspecified(self) -> bool:
        """Whether it stands for all addresses of the machine."""
        return ipaddress.ip_address(self.host).is_unspecified

    def listen(self) -> socket.socket:
        """A listening socket there.  Raises Busy."""
        return listen(self.host, self.port)

    def __str__(self) -> str:
        return show_address(self.host, self.port)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    return ipaddress.ip_address(host).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at an IP address; port 0: any that is free.  Raises Busy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol by name: asyncio sets TCP_NODELAY for no other, and an answer's body then waits 40 ms for its head
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise Busy(f"cannot listen on {show_address(host, port)}: {os.strerror(error.errno or 0)}; choose another port") from None
    return listener


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
