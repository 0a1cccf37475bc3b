"""Sends the clusters of a disk that a bitmap of qemu's names, or that have data, and nothing else; and writes them down.

`python -m bench.replication.clusters send URI [BITMAP]` writes to its standard output, `... receive FILE` takes from its
standard input: per extent 16 bytes (offset and length, little-endian), then the bytes.  It is the least that a backup by
dirty bitmap can send short of compressing, which is left to a pipe.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

import nbd

HEAD = struct.Struct("<QQ")
PIECE_BYTES = 1 << 20
STATUS_BYTES = 1 << 30  # asked about at once


def extents(disk: nbd.NBD, context: str) -> Iterator[tuple[int, int, int]]:
    """(offset, length, flags) of the whole disk."""
    offset, size = 0, disk.get_size()
    while offset < size:
        found: list[int] = []

        def keep(name: str, _offset: int, entries: list[int], _error: object, found: list[int] = found) -> int:
            if name == context:
                found.extend(entries)
            return 0

        disk.block_status(min(STATUS_BYTES, size - offset), offset, keep)
        for length, flags in zip(found[::2], found[1::2], strict=True):
            length = min(length, size - offset)
            yield offset, length, flags
            offset += length


def send(uri: str, bitmap: str | None) -> None:
    context = nbd.CONTEXT_BASE_ALLOCATION if bitmap is None else f"qemu:dirty-bitmap:{bitmap}"
    disk = nbd.NBD()
    disk.add_meta_context(context)
    disk.connect_uri(uri)
    if not disk.can_meta_context(context):
        raise SystemExit(f"the server knows nothing of {context}")
    for offset, length, flags in extents(disk, context):
        if bool(flags & 1) != (bitmap is None):  # dirty, or not a hole
            sys.stdout.buffer.write(HEAD.pack(offset, length))
            for at in range(offset, offset + length, PIECE_BYTES):
                sys.stdout.buffer.write(disk.pread(min(PIECE_BYTES, offset + length - at), at))
    sys.stdout.buffer.flush()
    disk.shutdown()


def receive(path: str) -> None:
    with open(path, "r+b") as file:
        while head := sys.stdin.buffer.read(HEAD.size):
            offset, length = HEAD.unpack(head)
            file.seek(offset)
            while length:
                data = sys.stdin.buffer.read(min(PIECE_BYTES, length))
                if not data:
                    raise SystemExit("it ended early")
                file.write(data)
                length -= len(data)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    else:
        receive(sys.argv[2])
