"""A pool's directory: how it is made, and kept from two engines at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid as uuid_module
from pathlib import Path

import xxhash

from blockdev import _medium, _pool, records, superblock
from blockdev.clock import now_seconds
from blockdev.errors import Busy, medium_failure
from blockdev.records import Table
from blockdev.superblock import Superblock


def table_path(pool_path: str, number: int) -> str:
    return f"{pool_path}/map/checkpoint-{number}"


def take_lock(path: str) -> int:
    """Lock the pool for this process; the lock goes with the file descriptor, so it can never be stale."""
    try:
        lock_file = os.open(f"{path}/LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise medium_failure(f"{path}/LOCK", failure.errno or 0) from None
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock_file, 32, 0).decode(errors="replace").strip()
        os.close(lock_file)
        if holder == str(os.getpid()):
            raise Busy(f"{path} is open in this process already: close that Pool first") from None
        raise Busy(f"{path} is in use by another engine (pid {holder}): stop that one first") from None
    with contextlib.suppress(OSError):  # it is for a message only; the file system may be full
        os.ftruncate(lock_file, 0)
        os.pwrite(lock_file, f"{os.getpid()}\n".encode(), 0)
    return lock_file


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
