"""The saved fingerprint index: a hint, written at a clean close and read at the next start.

A chunk that does not verify is skipped.  Layout: docs/format/pool.md.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

import xxhash

from blockdev import _medium, _pool
from blockdev.errors import MediumError

MAGIC = b"BLDDEDUP"
CHUNK = struct.Struct("<8sQQ")  # magic, bytes that follow, their XXH3-64
BUCKETS = 1 << 16


def _path(pool_path: str) -> str:
    return f"{pool_path}/dedup"


def save(pool_path: str, core: _pool.Core) -> None:
    """Replace the saved index by the one in memory; keeps the old one when that cannot be."""
    new = _path(pool_path) + ".new"
    with contextlib.suppress(MediumError):
        if os.path.exists(new):
            _medium.unlink_file(new)
        _medium.write_file(new, _chunks(core), create=True, durable=False)
        _medium.rename_file(new, _path(pool_path))


def _chunks(core: _pool.Core) -> Iterator[bytes]:
    first = 0
    while (entries := core.export_dedup(first, BUCKETS)) is not None:
        yield CHUNK.pack(MAGIC, len(entries), xxhash.xxh3_64_intdigest(entries))
        yield entries
        first += BUCKETS


def load(pool_path: str, core: _pool.Core) -> None:
    """Insert what is saved; stops quietly at the first damage, or when it cannot be read."""
    with contextlib.suppress(OSError), open(_path(pool_path), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        while len(head := file.read(CHUNK.size)) == CHUNK.size:
            magic, count, checksum = CHUNK.unpack(head)
            if magic != MAGIC or count > size_bytes:
                return
            entries = file.read(count)
            if len(entries) != count or xxhash.xxh3_64_intdigest(entries) != checksum:
                return
            core.import_dedup(entries)
