"""Memory that a connection of the engine socket has at both ends: the bytes of blocks are put there, not into frames.

Through the socket they were copied by the kernel twice, and twice more when frames were made and taken apart, which was half
of what a replicating engine and its client did (measured).  The client makes the memory and hands it over; it cannot shrink
any more then, or an access to it would end the engine.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from blockdev.constants import BLOCK_BYTES
from blockdev.engine.protocol import ROOM_BLOCKS, ProtocolError

ROOM_BYTES = ROOM_BLOCKS * BLOCK_BYTES
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_room() -> tuple[mmap.mmap, int]:
    """New memory, and the descriptor that is to be handed over, then closed."""
    descriptor = os.memfd_create("blockdev-room", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, ROOM_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        return mmap.mmap(descriptor, ROOM_BYTES), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def map_room(descriptor: int) -> mmap.mmap:
    """The memory that a client has handed over.  ProtocolError: it is none."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        if seals & fcntl.F_SEAL_SHRINK and size == ROOM_BYTES:
            return mmap.mmap(descriptor, ROOM_BYTES)
    except (OSError, ValueError):  # not a memfd, or not to be written to
        pass
    raise ProtocolError(f"a room is a memfd of {ROOM_BYTES} bytes, sealed against shrinking")
