"""How messages follow each other on a channel (docs/format/replication.md), and the one cursor that reads their bodies.

A frame is the length of what follows, the message's kind, its body.  What is read here comes from anywhere: each length is
looked at before memory is taken by it, and what is wrong raises ProtocolError, never another exception.
"""

from __future__ import annotations

import struct
from collections import deque

from blockdev.errors import InvalidArgument

MESSAGE_BYTES_MAX = 2 << 20  # of a kind and its body
LENGTH = struct.Struct("<I")
LENGTH_BYTES = LENGTH.size
SMALL_BYTES = 4096


class ProtocolError(InvalidArgument):
    """The other end does not speak this protocol, or not well."""


def message_bytes(length: bytes) -> int:
    """How long the message is that a length announces.  ProtocolError: no message is."""
    [count] = LENGTH.unpack(length)
    if not 0 < count <= MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {count} bytes: they have 1 to {MESSAGE_BYTES_MAX}")
    return int(count)


def frame(kind: int, *parts: bytes) -> bytes:
    """A message, ready to be written."""
    count = 1 + sum(map(len, parts))
    assert count <= MESSAGE_BYTES_MAX, f"a message of {count} bytes"
    return b"".join((LENGTH.pack(count), kind.to_bytes(1, "little"), *parts))


class Frames:
    """Cuts what comes over a channel into messages; never keeps more than one that is not whole, and what was fed.

    The bytes of a large message are copied once, however many pieces they come in.
    """

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()  # what was fed and is in no message yet
        self._small: bytearray | None = None  # the last piece, when it still grows
        self._byte_count = 0  # of all
        self._message_bytes: int | None = None  # of the message that comes; None: its length does

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole by now, each its kind and body.  ProtocolError: what follows is none."""
        self._keep(data)
        found: list[bytes] = []
        while True:
            if self._message_bytes is None:
                if self._byte_count < LENGTH_BYTES:
                    return found
                self._message_bytes = message_bytes(self._take(LENGTH_BYTES))
            if self._byte_count < self._message_bytes:
                return found
            found.append(self._take(self._message_bytes))
            self._message_bytes = None

    def _keep(self, data: bytes) -> None:
        """Small pieces are put together at once: a list of them would be larger than what they hold."""
        self._byte_count += len(data)
        if len(data) >= SMALL_BYTES or not self._pieces:
            self._seal()
            if data:
                self._pieces.append(memoryview(data))
        elif self._small is None:
            self._small = bytearray(data)
        else:
            self._small += data

    def _seal(self) -> None:
        if self._small is not None:
            self._pieces.append(memoryview(bytes(self._small)))
            self._small = None

    def _take(self, count: int) -> bytes:
        """So many of the oldest bytes, which are there."""
        self._seal()
        self._byte_count -= count
        taken: list[memoryview] = []
        while count:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        return b"".join(taken)

    @property
    def is_between(self) -> bool:
        """Whether nothing of a next message has come yet."""
        return not self._byte_count and self._message_bytes is None


class Cursor:
    """Reads a body from front to back, never beyond its end."""

    def __init__(self, body: memoryview, what: str) -> None:
        self._rest = body
        self._what = what

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def take(self, count: int) -> memoryview:
        if count > len(self._rest):
            raise ProtocolError(f"{self._what} ends too early")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def rest(self) -> memoryview:
        return self.take(len(self._rest))

    def end(self) -> None:
        if self._rest:
            raise ProtocolError(f"{self._what} has {len(self._rest)} bytes too many")
