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

    A message's bytes are copied twice, however many pieces they come in.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes | bytearray] = []  # what was fed and is in no message yet
        self._byte_count = 0  # of them
        self._wanted = LENGTH_BYTES  # so many are needed to go on

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole by now, each its kind and body.  ProtocolError: what follows is none."""
        self._keep(data)
        if self._byte_count < self._wanted:
            return []
        whole = bytes(self._chunks[0]) if len(self._chunks) == 1 else b"".join(self._chunks)
        found: list[bytes] = []
        place = 0
        self._wanted = LENGTH_BYTES
        while len(whole) - place >= LENGTH_BYTES:
            end = place + LENGTH_BYTES + message_bytes(whole[place : place + LENGTH_BYTES])
            if len(whole) < end:
                self._wanted = end - place
                break
            found.append(whole[place + LENGTH_BYTES : end])
            place = end
        self._chunks = [whole[place:]] if place < len(whole) else []
        self._byte_count = len(whole) - place
        return found

    def _keep(self, data: bytes) -> None:
        """Small pieces are put together at once: a list of them would be larger than what they hold."""
        last = self._chunks[-1] if self._chunks else None
        if len(data) >= SMALL_BYTES:
            self._chunks.append(data)
        elif isinstance(last, bytearray):
            last += data
        elif data:
            self._chunks.append(bytearray(data))
        self._byte_count += len(data)

    @property
    def is_between(self) -> bool:
        """Whether nothing of a next message has come yet."""
        return not self._byte_count


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
