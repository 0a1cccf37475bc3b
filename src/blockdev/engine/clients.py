"""How clients of the NBD socket are named, and what they ask for beside a disk.

A client on this machine may say who it is by the address that it binds its socket to, in the kernel's abstract name space; else it
is its process.  What it asks for stands before the export's name (docs/nbd.md, "Kept writes"):

    kept:VM/DISK      writes, trims and zeroes are replied to when the segment file has them: they survive the engine's death
    device:VM/DISK    that, and no end is told: for a block device of this machine's kernel, which is told its size otherwise
    transfer:VM/DISK  no guest's requests, so they do not count as such: an import, an export (docs/statistics.md)
"""

from __future__ import annotations

import os
from typing import NamedTuple

KEPT = "kept:"
DEVICE = "device:"
TRANSFER = "transfer:"
CLIENT_CHARACTERS_MAX = 60
ENDLESS_BYTES = 1 << 62  # what an export says that tells no end
_MARK = b"\0blockdev-client:"
_DEVICE_CLIENT = "block device "


class Request(NamedTuple):
    """What an export name asks for."""

    name: str
    keeps: bool = False
    endless: bool = False
    transfers: bool = False


def parse_request(name: str) -> Request:
    if name.startswith(DEVICE):
        return Request(name.removeprefix(DEVICE), keeps=True, endless=True)
    if name.startswith(KEPT):
        return Request(name.removeprefix(KEPT), keeps=True)
    if name.startswith(TRANSFER):
        return Request(name.removeprefix(TRANSFER), transfers=True)
    return Request(name)


def device_client(path: str) -> str:
    """How a block device of this machine's kernel is named."""
    return f"{_DEVICE_CLIENT}{path}"


def is_device_client(client: str) -> bool:
    """Whether an attachment's client is a block device of this machine's kernel, which finds its disk by another name again."""
    return client.startswith(_DEVICE_CLIENT)


def client_address(client: str) -> bytes:
    """To bind a Unix socket to, so that the attachments name `client`; another one at each call."""
    return _MARK + client.encode("ascii")[:CLIENT_CHARACTERS_MAX] + b"#" + os.urandom(6).hex().encode()


def client_of_socket(address: bytes, pid: int) -> str:
    """Who a client is by what its Unix socket is bound to (b"": nothing) and its process: one line of printable ASCII."""
    if not address.startswith(_MARK):
        return client_of_process(pid)
    said = address.removeprefix(_MARK).rpartition(b"#")[0][:CLIENT_CHARACTERS_MAX].decode("ascii", "replace")
    return said if said and said.isascii() and said.isprintable() else client_of_process(pid)


def client_of_process(pid: int) -> str:
    """How a client on this machine is named: "pid 123 (qemu-system-x86)"."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"
