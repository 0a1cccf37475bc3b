"""Writes a log that no checkpoint shortens and dies: `python -m tests.engine.long_log POOL KIND LOG_MIB`.

Vdisk "vm/disk" of 100 GiB.  What its blocks hold follows from their number, so that any may be checked afterwards
(expected_block).  Kinds: see KINDS.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
VDISK_BLOCKS = 100 << 18
VDISK_BYTES = VDISK_BLOCKS * BLOCK
SPREAD = 16_201_387  # shares no factor with VDISK_BLOCKS: the nth random write goes to n * SPREAD
KNOWN_BLOCKS = 4096  # what references refer to
KNOWN_STEP = 1_235  # odd: neighbours on the disk never refer to neighbours in the log
CHUNK_BLOCKS = 256
FLUSH_BYTES = 256 * MEBIBYTE  # about what the engine writes in the two seconds between flushes of its own


def known_number(block: int) -> int:
    """Which of the known blocks a reference at `block` refers to; a second pass over the disk refers to others."""
    return (block * KNOWN_STEP + block // VDISK_BLOCKS) % KNOWN_BLOCKS


def write_sequential(vdisk: Any, number: int) -> None:
    vdisk.write(number * CHUNK_BLOCKS * BLOCK % VDISK_BYTES, distinct_blocks(number * CHUNK_BLOCKS, CHUNK_BLOCKS))


def write_random(vdisk: Any, number: int) -> None:
    first = number * CHUNK_BLOCKS
    data = memoryview(distinct_blocks(first, CHUNK_BLOCKS))
    for i in range(CHUNK_BLOCKS):
        vdisk.write((first + i) * SPREAD % VDISK_BLOCKS * BLOCK, data[i * BLOCK : (i + 1) * BLOCK])


def write_commits(vdisk: Any, number: int) -> None:
    first = number * CHUNK_BLOCKS
    data = memoryview(distinct_blocks(first, CHUNK_BLOCKS))
    for i in range(CHUNK_BLOCKS):
        vdisk.write((first + i) * SPREAD % VDISK_BLOCKS * BLOCK, data[i * BLOCK : (i + 1) * BLOCK])
        vdisk.flush()


_known: list[bytes] = []


def write_references(vdisk: Any, number: int) -> None:
    if not _known:
        _known.extend(distinct_blocks(block, 1) for block in range(KNOWN_BLOCKS))
    first = number * CHUNK_BLOCKS
    data = b"".join([_known[known_number(first + i)] for i in range(CHUNK_BLOCKS)])
    vdisk.write(first % VDISK_BLOCKS * BLOCK, data)


KINDS: dict[str, Callable[[Any, int], None]] = {
    "sequential": write_sequential,  # 1 MiB of distinct data a write
    "random": write_random,  # 4 KiB of distinct data a write, all over the disk
    "commit": write_commits,  # the same with a flush after each: one block a batch
    "reference": write_references,  # blocks that are there already, in another order: nothing but entries
}


def expected_block(kind: str, number: int) -> tuple[int, bytes]:
    """(block number, content) of the nth block that was written."""
    if kind == "reference":
        return number % VDISK_BLOCKS, distinct_blocks(known_number(number), 1)
    if kind == "sequential":
        return number % VDISK_BLOCKS, distinct_blocks(number, 1)
    return number * SPREAD % VDISK_BLOCKS, distinct_blocks(number, 1)


def log_bytes(pool: Any) -> int:
    written: int = pool.stats()["log_bytes_since_checkpoint"]
    return written


def write_log(pool: Any, vdisk: Any, kind: str, target_bytes: int) -> int:
    """Write until the log has grown by `target_bytes`; returns how many blocks that were."""
    number = flushed = 0
    while (written := log_bytes(pool)) < target_bytes:
        if written - flushed >= FLUSH_BYTES:
            flushed = written
            pool.flush()
        KINDS[kind](vdisk, number)
        number += 1
    pool.flush()
    return number * CHUNK_BLOCKS


def main() -> None:
    from blockdev import Pool

    path, kind, log_mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
    Pool.create(path, 64 << 30).close()
    pool = Pool.open(path, background=False)
    vdisk = pool.create_vdisk(VDISK_BYTES, "vm/disk")
    if kind == "reference":
        source = pool.create_vdisk(KNOWN_BLOCKS * BLOCK, "vm/known")
        source.write(0, distinct_blocks(0, KNOWN_BLOCKS))
    pool.checkpoint()
    print(write_log(pool, vdisk, kind, log_mib * MEBIBYTE), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
