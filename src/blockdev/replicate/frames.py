"""How messages follow each other on a channel (docs/format/replication.md), and the one cursor that reads their bodies.

A frame is the length of what follows, the message's kind, its body.  What is read here comes from anywhere: each length is
looked at before memory is taken by it, and what is wrong raises ProtocolError, never another exception.
"""

from __future__ import annotations

import struct

from blockdev.errors import InvalidArgument

MESSAGE_BYTES_MAX = 2 << 20  # of a kind and its body
LENGTH = struct.Struct("<I")
LENGTH_BYTES = LENGTH.size
Message = bytes | bytearray  # a kind and its body


class ProtocolError(InvalidArgument):
    """The other end does not speak this protocol, or not well."""


def message_bytes(length: bytes | bytearray) -> int:
    """How long the message is that a length announces.  ProtocolError: no message is."""
    [count] = LENGTH.unpack(length)
    if not 0 < count <= MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {count} bytes: they have 1 to {MESSAGE_BYTES_MAX}")
    return int(count)


def frame(kind: int, *parts: bytes | memoryview) -> bytes:
    """A message, ready to be written."""
    count = 1 + sum(map(len, parts))
    assert count <= MESSAGE_BYTES_MAX, f"a message of {count} bytes"
    return b"".join((LENGTH.pack(count), kind.to_bytes(1, "little"), *parts))


class Frames:
    """Cuts what comes over a channel into messages; never keeps more than one that is not whole.

    The bytes of a message are copied once, however many pieces they come in.
    """

    def __init__(self) -> None:
        self._length = bytearray()  # as much of it as came
        self._message: bytearray | None = None  # that comes; None: its length does
        self._count = 0  # bytes of it that came

    def feed(self, data: bytes | memoryview) -> list[bytearray]:
        """The messages that are whole by now, each its kind and body.  ProtocolError: what follows is none."""
        found: list[bytearray] = []
        rest = memoryview(data)
        while len(rest):
            if self._message is None:
                missing = LENGTH_BYTES - len(self._length)
                self._length += rest[:missing]
                rest = rest[missing:]
                if len(self._length) == LENGTH_BYTES:
                    self._message = bytearray(message_bytes(self._length))
                    self._length.clear()
                continue
            taken = rest[: len(self._message) - self._count]
            self._message[self._count : self._count + len(taken)] = taken
            self._count += len(taken)
            rest = rest[len(taken) :]
            if self._count == len(self._message):
                found.append(self._message)
                self._message, self._count = None, 0
        return found

    @property
    def is_between(self) -> bool:
        """Whether nothing of a next message has come yet."""
        return self._message is None and not self._length


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
