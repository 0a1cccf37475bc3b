"""How messages follow each other on a channel (docs/format/replication.md), and the one cursor that reads their bodies.

A frame is the length of what follows, the message's kind, its body.  What is read here comes from anywhere: each length is
looked at before memory is taken by it, and what is wrong raises ProtocolError, never another exception.
"""

from __future__ import annotations

import struct

import numpy as np

from blockdev.errors import InvalidArgument

MESSAGE_BYTES_MAX = 2 << 20  # of a kind and its body
LENGTH = struct.Struct("<I")
LENGTH_BYTES = LENGTH.size
Message = bytes | bytearray | memoryview  # a kind and its body
Frame = memoryview  # that `frame` made
ROOM_BYTES = 64  # around what is to be sent, for what SSH puts in front of each piece and behind it
ROOM = bytes(ROOM_BYTES)
MEMORY_BYTES_MIN, MEMORY_BYTES_USUAL = 1 << 16, (1 << 20) + (1 << 16)  # for messages, at once: in a channel of small ones, and of data


class ProtocolError(InvalidArgument):
    """The other end does not speak this protocol, or not well."""


def message_bytes(length: Message) -> int:
    """How long the message is that a length announces.  ProtocolError: no message is."""
    [count] = LENGTH.unpack(length)
    if not 0 < count <= MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {count} bytes: they have 1 to {MESSAGE_BYTES_MAX}")
    return int(count)


def frame(kind: int, *parts: bytes | memoryview) -> Frame:
    """A message, ready to be written, with room around it."""
    count = 1 + sum(map(len, parts))
    assert count <= MESSAGE_BYTES_MAX, f"a message of {count} bytes"
    return with_room(LENGTH.pack(count), kind.to_bytes(1, "little"), *parts)


def with_room(*parts: bytes | memoryview) -> Frame:
    """The parts in one, with ROOM_BYTES of memory in front and behind, where `room_around` has it."""
    return memoryview(bytearray().join((ROOM, *parts, ROOM)))[ROOM_BYTES:-ROOM_BYTES]


def room_around(made: Frame) -> memoryview:
    """What `with_room` made, and the room."""
    around = memoryview(made.obj)
    assert len(around) == len(made) + 2 * ROOM_BYTES
    return around


class Frames:
    """Cuts what comes over a channel into messages; never keeps more than one that is not whole.

    Messages are parts of memory that is written once, and given back with the last of them.  Who makes bytes where `room`
    says and feeds those has them not copied; of any others one copy is made.
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._begin = self._end = 0  # what came and is in no whole message yet
        self._made: memoryview | None = None  # what was made in `room`
        self._covered = b""

    def room(self, before: int, count: int) -> memoryview:
        """Where to make `count` bytes, of which all but the first `before` may be what comes next.

        Then `uncover`, and before all else: until then others lie under the first ones.
        """
        self._reserve(before, count)
        first = self._end - before
        self._covered = bytes(self._memory[first : self._end])
        return self._memory[first : first + count]

    def uncover(self) -> None:
        first = self._end - len(self._covered)
        self._memory[first : self._end] = self._covered

    def made(self, data: memoryview) -> None:
        """Of `room`, from the first byte behind `before` on: it is fed next, if at all."""
        self._made = data

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """The messages that are whole by now, each its kind and body.  ProtocolError: what follows is none."""
        if data is not self._made:
            self._reserve(0, len(data))
            self._memory[self._end : self._end + len(data)] = data
        self._made = None
        self._end += len(data)
        found = []
        while self._end - self._begin >= LENGTH_BYTES:
            begin = self._begin + LENGTH_BYTES
            end = begin + message_bytes(self._memory[self._begin : begin])
            if self._end < end:
                break
            found.append(self._memory[begin:end])
            self._begin = end
        return found

    def _reserve(self, before: int, count: int) -> None:
        """Have room for `count` bytes behind what came; the `before` in front of that are of no message that was cut out."""
        rest = self._memory[self._begin : self._end]
        first = self._begin + (before if len(rest) < before else 0)
        least = count if len(rest) else max(count, len(self._memory) // 4)  # a message that begins here is to end here
        if first + len(rest) + least > len(self._memory):
            wanted = before + len(rest) + count
            self._memory = np.empty(MEMORY_BYTES_MIN if wanted <= MEMORY_BYTES_MIN else max(MEMORY_BYTES_USUAL, wanted), np.uint8).data
            first = before
        elif first == self._begin:
            return
        self._memory[first : first + len(rest)] = rest
        self._begin, self._end = first, first + len(rest)

    @property
    def is_between(self) -> bool:
        """Whether nothing of a next message has come yet."""
        return self._begin == self._end


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
