"""A pool's directory: how it is made, and kept from two engines at once."""

from __future__ import annotations

import os
import shutil
import uuid as uuid_module
from pathlib import Path

import xxhash

from blockdev import _medium, _pool, records, superblock
from blockdev.clock import now_seconds
from blockdev.errors import Busy, medium_failure
from blockdev.locks import lock_or_holder
from blockdev.records import Table
from blockdev.superblock import Superblock


def table_path(pool_path: str, number: int) -> str:
    return f"{pool_path}/map/checkpoint-{number}"


def take_lock(path: str) -> int:
    """Lock the pool for this process, for as long as the file descriptor is open.  Busy."""
    try:
        lock_file = os.open(f"{path}/LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise medium_failure(f"{path}/LOCK", failure.errno or 0) from None
    holder = lock_or_holder(lock_file, str(os.getpid()))
    if holder is None:
        return lock_file
    os.close(lock_file)
    if holder == str(os.getpid()):
        raise Busy(f"{path} is open in this process already: close that Pool first")
    raise Busy(f"{path} is in use by another engine (pid {holder}): stop that one first")


def write_new_pool(path: str, capacity_bytes: int, segment_slots: int) -> None:
    """Make an empty pool, all of it or nothing: beside its place, and renamed."""
    making = f"{path}.making-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    try:
        _medium.make_directories(os.path.dirname(path))
        for directory in (making, f"{making}/segments", f"{making}/map"):
            _medium.make_directory(directory)
        table = records.encode_table(Table(1, 0, 1, 1, 0, 1, 1, [], b"", b""))
        _medium.write_file(table_path(making, 1), [table], create=True, durable=True)
        for name in _pool.NODE_FILES:
            _medium.write_file(f"{making}/map/{name}", [], create=True, durable=True)
        checksum = xxhash.xxh3_64_intdigest(table)
        first = Superblock(
            uuid_module.uuid4().bytes, 0, 1, len(table), checksum, segment_slots, capacity_bytes, int(now_seconds())
        )
        for block in (first, first._replace(sequence=1)):
            content = [superblock.encode(block)]
            _medium.write_file(superblock.path_of(making, block.sequence), content, create=True, durable=True)
        for directory in (f"{making}/map", making):
            _medium.sync_directory(directory)
        _medium.rename_file(making, path)
        _medium.sync_directory(str(Path(path).parent))
    except OSError as failure:
        raise medium_failure(path, failure.errno or 0) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
