"""Moves the bytes of frames over a socket with as few copies as there can be: blocks of data are most of what passes.

A peer can make nobody take more memory than its header says, which is bounded (protocol.py).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from blockdev.engine.protocol import Part


def send(stream: socket.socket, parts: Sequence[Part]) -> None:
    """All of them, one after the other.  OSError; the stream's timeout is that of each wait."""
    left = [memoryview(part) for part in parts]
    while left:
        sent = stream.sendmsg(left, (), socket.MSG_NOSIGNAL)
        while left and sent >= len(left[0]):
            sent -= len(left[0])
            del left[0]
        if sent:
            left[0] = left[0][sent:]


def receive(stream: socket.socket, byte_count: int) -> bytearray | None:
    """So many bytes; None: the peer ended before.  OSError."""
    data = bytearray(byte_count)
    rest = memoryview(data)
    while len(rest):
        count = stream.recv_into(rest)
        if not count:
            return None
        rest = rest[count:]
    return data
