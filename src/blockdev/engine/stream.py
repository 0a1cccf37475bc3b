"""Moves the bytes of frames over a socket, and a descriptor beside a request.

A peer can make nobody take more memory than its header says, which is bounded (protocol.py), nor keep a descriptor open.
"""

from __future__ import annotations

import array
import os
import socket

DESCRIPTOR = array.array("i")
FLAGS = socket.MSG_CMSG_CLOEXEC


def send(stream: socket.socket, data: bytes, descriptor: int | None = None) -> None:
    """OSError; the stream's timeout is that of each wait."""
    rest = memoryview(data)
    rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    while rest:
        rest = rest[stream.sendmsg([rest], rights, socket.MSG_NOSIGNAL) :]
        rights = []


def receive(stream: socket.socket, byte_count: int) -> bytearray | None:
    """So many bytes; None: the peer ended before.  OSError."""
    data = bytearray(byte_count)
    return data if _fill(stream, memoryview(data)) else None


def receive_with_descriptor(stream: socket.socket, byte_count: int) -> tuple[bytearray | None, int | None]:
    """The same, and the descriptor that came with the first of them, which is the caller's then."""
    data = bytearray(byte_count)
    count, messages, _, _ = stream.recvmsg_into([data], socket.CMSG_SPACE(DESCRIPTOR.itemsize), FLAGS)
    descriptor = _first(messages)
    try:
        whole = count > 0 and _fill(stream, memoryview(data)[count:])
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        raise
    return data if whole else None, descriptor


def _fill(stream: socket.socket, rest: memoryview) -> bool:
    while len(rest):
        count = stream.recv_into(rest)
        if not count:
            return False
        rest = rest[count:]
    return True


def _first(messages: list[tuple[int, int, bytes]]) -> int | None:
    """There is room for two of them, as the kernel rounds up: more than one is none of ours."""
    found = array.array("i")
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    for other in found[1:]:
        os.close(other)
    return found[0] if found else None
