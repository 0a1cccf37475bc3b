"""A process that loads a pool until it is killed: `python -m tests.engine.crash_load POOL SEED`.

Each lane is a thread with a range of its own; its steps follow from (seed, lane) alone, so that the parent can tell what
it wrote.  What has become durable is reported on stdout, one line each, after the engine said so:
  R                      the pool is open
  F lane count           the first `count` steps of the lane are flushed
  K lane count           the first `count` steps of the lane are kept
  S name before after    snapshot of all vdisks; steps replied to before, steps submitted after (comma separated)
  C name snapshot        clone of vm/0's part of the snapshot
  D name                 snapshot deleted
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tests.engine.content import KINDS, block_data
from tests.engine.model import SECTOR, Step

LANES = 4
LANE_BYTES = 768 * 1024 + 512  # lanes meet inside a block
VDISKS = 2  # lane n lives on vdisk n % VDISKS
VDISK_BYTES = LANES // VDISKS * LANE_BYTES


def lane_place(lane: int) -> tuple[int, int]:
    """(vdisk index, byte offset) of a lane."""
    return lane % VDISKS, lane // VDISKS * LANE_BYTES


def steps(seed: int, lane: int) -> Iterator[tuple[Step, str | None]]:
    """Endless steps of a lane, offsets from the start of the lane; "F": a flush follows, "K": a keep."""
    source = random.Random(f"{seed}/{lane}")
    total = LANE_BYTES // SECTOR
    for stamp in range(1, sys.maxsize):
        sectors = source.choice((1, 1, 3, 8, 8, 8, 16, 33, 256))
        first = source.randrange(total - sectors + 1)
        kind = source.choice((*KINDS, "noise", "noise", "hole"))
        length = sectors * SECTOR
        data = None if kind == "hole" else block_data(kind, source.randrange(1 << 30), length)
        yield Step(lane, first * SECTOR, length, data, stamp), source.choice("FKK" + 14 * " ").strip() or None


class Lane:
    def __init__(self, vdisks: list[Any], seed: int, number: int) -> None:
        index, self.base = lane_place(number)
        self.vdisk, self.seed, self.number = vdisks[index], seed, number
        self.submitted = self.replied = 0

    def run(self) -> None:
        for step, then in steps(self.seed, self.number):
            self.submitted += 1
            if step.data is None:
                self.vdisk.discard(self.base + step.offset, step.length)
            else:
                self.vdisk.write(self.base + step.offset, step.data)
            self.replied += 1
            if then is not None:
                (self.vdisk.flush if then == "F" else self.vdisk.keep)()
                report(then, self.number, self.replied)


def report(*fields: object) -> None:
    os.write(1, (" ".join(map(str, fields)) + "\n").encode())  # atomic below PIPE_BUF


def take_snapshots(pool: Any, vdisks: list[Any], lanes: list[Lane], seed: int) -> None:
    source = random.Random(f"{seed}/snapshots")
    kept: list[list[Any]] = []
    for number in range(sys.maxsize):
        name = f"{seed}-{number}"
        before = ",".join(str(lane.replied) for lane in lanes)
        taken = pool.snapshot(vdisks, [f"{name}/{index}" for index in range(len(vdisks))])
        report("S", name, before, ",".join(str(lane.submitted) for lane in lanes))
        kept.append(taken)
        if source.random() < 0.3:
            pool.clone(taken[0], f"{name}/clone")
            report("C", f"{name}/clone", f"{name}/0")
        if len(kept) > 3:
            gone = kept.pop(source.randrange(len(kept)))
            label = gone[0].name.rpartition("/")[0]
            pool.delete(gone)
            report("D", label)
        if source.random() < 0.3:
            pool.checkpoint()


def main() -> None:
    from blockdev import Pool

    path, seed = sys.argv[1], int(sys.argv[2])
    pool = Pool.open(path, map_cache_bytes=64 << 10)
    vdisks = [pool.find(f"vm/{index}") for index in range(VDISKS)]
    lanes = [Lane(vdisks, seed, number) for number in range(LANES)]
    report("R")
    threads = [threading.Thread(target=lane.run, daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    take_snapshots(pool, vdisks, lanes, seed)


if __name__ == "__main__":
    main()
