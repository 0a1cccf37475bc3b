"""Builds a large pool fast and dies without closing it: `python -m tests.engine.big_pool POOL MAPPED_GIB DISTINCT_MIB`.

One vdisk of 1 TiB named "vm/big" gets DISTINCT_MIB of distinct blocks, and the same data again and again (references by
dedup) until MAPPED_GIB are mapped, spread over the whole vdisk.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
VDISK_BYTES = 1 << 40
CHUNK_BLOCKS = 1024
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK
THREADS = 2


def chunk_place(number: int, chunk_count: int) -> int:
    """Byte offset of the nth chunk: evenly spread, on a chunk boundary."""
    stride = VDISK_BYTES // CHUNK_BYTES // chunk_count
    return number * stride * CHUNK_BYTES


def first_block(number: int, distinct_chunks: int) -> int:
    return number % distinct_chunks * CHUNK_BLOCKS


def chunk_counts(mapped_gib: int, distinct_mib: int) -> tuple[int, int]:
    return (mapped_gib << 30) // CHUNK_BYTES, distinct_mib * MEBIBYTE // CHUNK_BYTES


def write_chunks(vdisk: Any, numbers: range, chunk_count: int, chunks: list[bytes]) -> None:
    for number in numbers:
        vdisk.write(chunk_place(number, chunk_count), chunks[number % len(chunks)])


def in_threads(vdisk: Any, first: int, end: int, chunk_count: int, chunks: list[bytes]) -> None:
    lanes = [range(first + lane, end, THREADS) for lane in range(THREADS)]
    threads = [
        threading.Thread(target=write_chunks, args=(vdisk, lane, chunk_count, chunks)) for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    from blockdev import Pool

    path = sys.argv[1]
    chunk_count, distinct_chunks = chunk_counts(int(sys.argv[2]), int(sys.argv[3]))
    pool = Pool.create(path, 64 << 30)
    vdisk = pool.create_vdisk(VDISK_BYTES, "vm/big")
    chunks = [
        distinct_blocks(first_block(number, distinct_chunks), CHUNK_BLOCKS)
        for number in range(distinct_chunks)
    ]
    in_threads(vdisk, 0, distinct_chunks, chunk_count, chunks)
    in_threads(vdisk, distinct_chunks, chunk_count, chunk_count, chunks)
    vdisk.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
