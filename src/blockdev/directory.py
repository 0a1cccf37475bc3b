"""A pool's directory: how it is made, and kept from two engines at once."""

from __future__ import annotations

import os
import re
import shutil
import uuid as uuid_module
from pathlib import Path

import xxhash

from blockdev import _medium, _pool, beside, records, superblock
from blockdev.clock import now_seconds
from blockdev.errors import Busy, medium_failure
from blockdev.locks import lock_or_holder
from blockdev.records import Table
from blockdev.superblock import Superblock

MAKING = r"making-[0-9]+(-[0-9a-f]{8})?"  # behind the pool's own name and a dot; earlier builds named the process alone


def table_path(pool_path: str, number: int) -> str:
    return f"{pool_path}/map/checkpoint-{number}"


def take_lock(path: str) -> int:
    """Lock the pool for this process, for as long as the file descriptor is open.  Busy."""
    try:
        lock_file = os.open(f"{path}/LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise medium_failure(f"{path}/LOCK", failure.errno or 0) from None
    try:
        holder = lock_or_holder(lock_file, str(os.getpid()))
    except OSError as failure:
        os.close(lock_file)
        raise medium_failure(f"{path}/LOCK cannot be locked", failure.errno or 0) from None
    if holder is None:
        return lock_file
    os.close(lock_file)
    if holder == str(os.getpid()):
        raise Busy(f"{path} is open in this process already: close that Pool first")
    raise Busy(f"{path} is in use by another engine (pid {holder}): stop that one first")


def clear_unfinished(path: str) -> None:
    """Remove what makers of this pool left beside it that were killed; what is being made is locked, and stays."""
    above, name = os.path.split(path)
    beside.clear(above, re.compile(rf"{re.escape(name)}\.{MAKING}"))


def write_new_pool(path: str, capacity_bytes: int, segment_slots: int) -> None:
    """Make an empty pool, all of it or nothing: beside its place, and renamed.  A kill leaves what the next one clears."""
    making, lock_file = "", -1
    try:
        _medium.make_directories(os.path.dirname(path))
        clear_unfinished(path)
        making, lock_file = beside.begin(f"{path}.making-", take_lock)
        for directory in (f"{making}/segments", f"{making}/map"):
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
        if lock_file >= 0:
            shutil.rmtree(making, ignore_errors=True)
            os.close(lock_file)
