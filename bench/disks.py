"""Disks in the state that a workload begins with."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbd
from bench import fio
from bench.peers import Peer
from bench.workloads import KIB, Workload

FILL_SEED_OFFSET = 1_000_000  # so that no write under test repeats the data it overwrites
BLOCK_BYTES = 4 * KIB
BLOCKS_BETWEEN_SNAPSHOTS = 16


@dataclass(frozen=True)
class Sizes:
    """Of the disks of a run, by what is done with them."""

    filled_bytes: int
    fresh_bytes: int
    sustained_bytes: int

    def of(self, workload: Workload) -> int:
        if workload.sustained:
            return self.sustained_bytes
        return self.fresh_bytes if workload.state == "fresh" else self.filled_bytes


@dataclass(frozen=True)
class Disk:
    """A served disk, and where clients find it or its clones."""

    peer: Peer
    uris: list[str]


@contextmanager
def served_disk(workload: Workload, peer: type[Peer], sizes: Sizes, folder: Path, seed: int) -> Iterator[Disk]:
    """A disk in `folder` as `workload` wants it, and nothing of it waiting to be written."""
    with peer(folder, sizes.of(workload)) as served:
        if workload.state != "fresh":
            fill_seed = seed + FILL_SEED_OFFSET
            fio.fill(served.uri, served.size_bytes, fill_seed, folder.with_suffix(".json"))
            _take_snapshots(served, max(workload.snapshots, peer.snapshots), random.Random(fill_seed))
        uris = served.clones(workload.clones) if workload.clones else [served.uri]
        if not served.keeps_memory_only:
            os.sync()
        yield Disk(served, uris)


def _take_snapshots(served: Peer, count: int, chance: random.Random) -> None:
    """With a few blocks overwritten between each and the next, so that no two of them share all."""
    for number in range(count):
        if number:
            _overwrite_some(served, chance)
        served.snapshot()


def _overwrite_some(served: Peer, chance: random.Random) -> None:
    client = nbd.NBD()
    client.connect_uri(served.uri)
    for _ in range(BLOCKS_BETWEEN_SNAPSHOTS):
        block = chance.randrange(served.size_bytes // BLOCK_BYTES)
        client.pwrite(chance.randbytes(BLOCK_BYTES), block * BLOCK_BYTES)
    client.shutdown()
