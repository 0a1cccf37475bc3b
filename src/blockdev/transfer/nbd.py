"""Reading and writing an export over NBD, and the handshake for a client that is not this process, by libnbd: its one room.

An Export is one connection, for one thread at a time.  Offsets and lengths are multiples of 512 bytes within the export; requests are
cut into parts (REQUEST_BYTES_MAX, ZERO_BYTES_MAX), so a range may be as long as it.  Durable: what any connection wrote, after
`flush` returned.  A call waits for as long as the engine takes; one that dies ends it.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import nbd
from blockdev.clock import monotonic_seconds
from blockdev.engine.clients import TRANSFER, client_address, parse_request
from blockdev.errors import (
    BlockdevError,
    Gone,
    InvalidArgument,
    NotFound,
    PoolFull,
    ReadOnly,
    ToolFailed,
    Unavailable,
)

REQUEST_BYTES_MAX = 4 << 20
ZERO_BYTES_MAX = 256 << 20  # 0.2 s for a TiB of holes, which parts of 4 MiB take 11 s for

_AWAY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
_FAILURES: dict[int, type[BlockdevError]] = {
    errno.ENOSPC: PoolFull,
    errno.ESHUTDOWN: Gone,
    errno.EPERM: ReadOnly,
    errno.EROFS: ReadOnly,
    **dict.fromkeys(_AWAY, Unavailable),
}

HANDSHAKE_SECONDS_MAX = 10.0
# what an export is, in the protocol's transmission flags
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 4, 8, 16, 32, 64
CAN_MULTI_CONN = 256


class Link(NamedTuple):
    """A connection behind its handshake, with simple replies: the next byte is a request.  Whoever has it closes it."""

    connection: sockets.socket
    flags: int


def shake_hands(socket: Path, name: str, client: str) -> Link:
    """Connect to the export `name`, for a client that speaks only of requests and replies, as a kernel.

    `client`: what the engine's attachments show it by.
    NotFound: no such export; Unavailable: nobody serves there, or not within HANDSHAKE_SECONDS_MAX.
    """
    connection = sockets.socket(sockets.AF_UNIX)
    try:
        connection.bind(client_address(client))
        connection.connect(os.fspath(socket))
    except OSError as error:
        connection.close()
        raise Unavailable(f"the engine is not running at {socket}: start it with blockdevctl serve ({error.strerror})") from None
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.set_request_structured_replies(False)  # a kernel takes simple ones only
    try:
        handle.aio_connect_socket(connection.detach())  # which may find the whole answer there
        deadline = monotonic_seconds() + HANDSHAKE_SECONDS_MAX
        while handle.aio_is_connecting():
            if handle.poll(max(0, int(1000 * (deadline - monotonic_seconds())))) == 0:
                raise Unavailable(f"the engine at {socket} does not answer: it may be recovering; the next look tries again")
        return Link(sockets.socket(fileno=os.dup(handle.aio_get_fd())), _flags(handle))
    except nbd.Error as error:
        if error.errnum == errno.ENOENT:
            raise NotFound(f"there is no export {parse_request(name).name}") from None
        raise Unavailable(f"the engine at {socket} ended a handshake ({error.string})") from None


def _flags(handle: nbd.NBD) -> int:
    answers = (
        (handle.is_read_only(), READ_ONLY),
        (handle.can_flush(), SEND_FLUSH),
        (handle.can_fua(), SEND_FUA),
        (handle.is_rotational(), ROTATIONAL),
        (handle.can_trim(), SEND_TRIM),
        (handle.can_zero(), SEND_WRITE_ZEROES),
        (handle.can_multi_conn(), CAN_MULTI_CONN),
    )
    return HAS_FLAGS | sum(flag for holds, flag in answers if holds)


class Export:
    """One connection to one export on a Unix socket, for no guest; close it, or use it as a context."""

    def __init__(self, socket: str | os.PathLike[str], name: str) -> None:
        """NotFound: no such export; Unavailable: nobody listens there."""
        self._name = name
        self._handle = nbd.NBD()
        self._handle.set_export_name(TRANSFER + name)
        try:
            self._handle.connect_unix(os.fspath(socket))
        except nbd.Error as error:
            if error.errnum == errno.ENOENT and Path(socket).exists():
                raise NotFound(f"there is no export {name}") from None
            raise Unavailable(f"the engine is not running at {socket}: start it with blockdevctl serve ({error.string})") from None
        self.size_bytes: int = self._handle.get_size()

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self._do(self._handle.pread, count, at) for at, count in self._parts(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """PoolFull, ReadOnly."""
        view = memoryview(data)
        for at, count in self._parts(offset, len(data)):
            self._do(self._handle.pwrite, bytes(view[at - offset : at - offset + count]), at)

    def zero(self, offset: int, length: int) -> None:
        """The range becomes a hole, which reads as zeros."""
        for at, count in self._parts(offset, length, ZERO_BYTES_MAX):
            self._do(self._handle.zero, count, at)

    def flush(self) -> None:
        self._do(self._handle.flush)

    def close(self) -> None:
        with suppress(nbd.Error):  # the engine is away: then it knows
            self._handle.shutdown()

    def __enter__(self) -> Export:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _do(self, call: Callable[..., bytes], *arguments: object) -> bytes:
        try:
            return call(*arguments)
        except nbd.Error as error:
            raise _FAILURES.get(error.errnum, ToolFailed)(f"export {self._name}: {error.string}") from None

    def _parts(self, offset: int, length: int, bytes_max: int = REQUEST_BYTES_MAX) -> Iterator[tuple[int, int]]:
        """(offset, length) of what one request may ask for.  NBD says ENOSPC of what is beyond the end, which it is not."""
        if not 0 <= offset <= offset + length <= self.size_bytes:
            raise InvalidArgument(f"export {self._name} has {self.size_bytes} bytes, not {length} at {offset}")
        for at in range(offset, offset + length, bytes_max):
            yield at, min(bytes_max, offset + length - at)
