"""Churn: overwrites, snapshots, clones, discards and deletes, far more than the pool could hold if nothing came back.

  .venv/bin/python -m tests.engine.churn DIRECTORY [--gib 20] [--capacity-gib 8] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any, NamedTuple

import numpy as np

from blockdev import Pool
from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK

SNAPSHOTS_MAX = 4
CLONES_MAX = 3
LOOK_BLOCKS = 64


class Written(NamedTuple):
    """What a run came to."""

    bytes: int
    seconds: float
    used_max: int  # bytes of the pool, at any time
    steps: int


class Holder:
    """A disk or a snapshot, and the number of the distinct block that each of its blocks is; 0: zeros."""

    def __init__(self, thing: Any, numbers: np.ndarray) -> None:
        self.thing = thing
        self.numbers = numbers

    def look(self, first: int, count: int) -> None:
        found = self.thing.read(first * BLOCK, count * BLOCK)
        for number in range(count):
            known = int(self.numbers[first + number])
            wanted = distinct_blocks(known, 1) if known else bytes(BLOCK)
            assert found[number * BLOCK : (number + 1) * BLOCK] == wanted, f"{self.thing} block {first + number}"


class Churn:
    def __init__(self, pool: Any, disk_bytes: int, disk_count: int, seed: int) -> None:
        self.pool = pool
        self.chosen = random.Random(seed)
        self.blocks = disk_bytes // BLOCK
        self.next = 1
        self.written = 0
        self.disks = [self._holder(pool.create_vdisk(disk_bytes)) for _ in range(disk_count)]
        self.snapshots: list[Holder] = []
        self.clones: list[Holder] = []

    def _holder(self, thing: Any) -> Holder:
        return Holder(thing, np.zeros(self.blocks, dtype=np.int64))

    def run(self, total_bytes: int) -> Written:
        started, used_max, steps = time.monotonic(), 0, 0
        while self.written < total_bytes:
            self.chosen.choices(
                (self.write, self.snapshot, self.clone, self.discard, self.look, self.drop), (60, 3, 2, 4, 10, 3)
            )[0]()
            steps += 1
            if steps % 64 == 0:
                used_max = max(used_max, self.pool.stats()["used_bytes"])
        for holder in (*self.disks, *self.clones, *self.snapshots):
            for _ in range(50):
                self._look_at(holder)
        return Written(self.written, time.monotonic() - started, used_max, steps)

    def delete_all(self) -> None:
        self.pool.delete([holder.thing for holder in (*self.disks, *self.clones, *self.snapshots)])

    def _range(self, largest: int) -> tuple[int, int]:
        count = self.chosen.randrange(1, largest)
        return self.chosen.randrange(self.blocks - count), count

    def write(self) -> None:
        holder = self.chosen.choice((*self.disks, *self.disks, *self.clones))
        first, count = self._range(512)
        holder.thing.write(first * BLOCK, distinct_blocks(self.next, count))
        holder.numbers[first : first + count] = np.arange(self.next, self.next + count)
        self.next += count
        self.written += count * BLOCK

    def discard(self) -> None:
        holder = self.chosen.choice(self.disks)
        first, count = self._range(self.blocks // 4)
        holder.thing.discard(first * BLOCK, count * BLOCK)
        holder.numbers[first : first + count] = 0

    def snapshot(self) -> None:
        if len(self.snapshots) == SNAPSHOTS_MAX:
            self.pool.delete(self.snapshots.pop(0).thing)
        source = self.chosen.choice(self.disks)
        self.snapshots.append(Holder(self.pool.snapshot([source.thing])[0], source.numbers.copy()))

    def clone(self) -> None:
        if self.snapshots and len(self.clones) < CLONES_MAX:
            source = self.chosen.choice(self.snapshots)
            self.clones.append(Holder(self.pool.clone(source.thing), source.numbers.copy()))

    def drop(self) -> None:
        if self.clones:
            self.pool.delete(self.clones.pop(0).thing)

    def look(self) -> None:
        self._look_at(self.chosen.choice((*self.disks, *self.snapshots, *self.clones)))

    def _look_at(self, holder: Holder) -> None:
        holder.look(self.chosen.randrange(self.blocks - LOOK_BLOCKS), LOOK_BLOCKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--gib", type=float, default=20)
    parser.add_argument("--capacity-gib", type=float, default=8)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    capacity = int(asked.capacity_gib * (1 << 30)) // 512 * 512
    with Pool.create(f"{asked.directory}/churn", capacity) as pool:
        churn = Churn(pool, capacity // 16 // BLOCK * BLOCK, 3, asked.seed)
        print(churn.run(int(asked.gib * (1 << 30))))
        churn.delete_all()
        print(pool.compact())
        print({name: value for name, value in pool.stats().items() if name.endswith("_bytes")})
        print("check:", pool.check() or "sound")


if __name__ == "__main__":
    main()
