"""Targets that open a damaged pool and use it: whatever the damage, operating errors at most, and never twice the same shock.

A pool that opens, works and closes without an error opens again: nothing that a start accepts may make the next one refuse.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blockdev import Pool, VDisk, VDiskSnapshot, errors
from tests.engine.content import distinct_blocks
from tests.fuzz import base_pools, edits
from tests.fuzz.base_pools import BLOCK, MEBIBYTE, SMALL
from tests.fuzz.edits import Damage
from tests.fuzz.harness import Harness
from tests.fuzz.layout import places

KINDS = {
    "pool-head": ["superblock", "table-head", "table-object", "table-lists"],
    "pool-log": ["batch-head", "batch-entry", "record", "payload"],
    "pool-map": ["node-head", "node-entries", "table-object"],
    "pool-compacted": ["compacted-head", "index-page", "frames"],
    "pool-files": ["file", "dedup-head", "dedup-entries", "findings", "segment-head", "trailer", "index"],
}
REFUSALS = (errors.Corrupt, errors.MediumError, errors.UnknownFormat, errors.NotFound)
OBJECTS_MAX = 12  # that are used; a damaged pool does not have many more
WINDOW_BYTES = 64 << 10
DIFF_BYTES_MAX = 1 << 30
AGAIN_EVERY = 3  # inputs: the second opening is a third of the time


class Pools(Harness):
    def __init__(self, name: str) -> None:
        self._kinds = KINDS[name]
        bases = base_pools.make()
        self._bases = [bases[base] for base in (("compacted",) if name == "pool-compacted" else ("killed", "closed"))]
        self._places = [places(files) for files in self._bases]
        self._directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._descriptors = 0

    def one_input(self, data: bytes) -> None:
        which = data[0] % len(self._bases) if data else 0
        damage = Damage(self._bases[which], self._places[which], self._kinds)
        damage.run(data[1:])
        path = self._directory / "pool"
        write(damage, path)
        try:
            if use(path) and zlib.crc32(data) % AGAIN_EVERY == 0:
                use_again(path)
        finally:
            shutil.rmtree(path)
        self._check_descriptors()

    def _check_descriptors(self) -> None:
        """A file that stays open at each refused start would end a process that tries again and again."""
        count = len(os.listdir("/proc/self/fd"))
        if count > self._descriptors:
            gc.collect()
            count = len(os.listdir("/proc/self/fd"))
        if self._descriptors:
            assert count <= self._descriptors, f"{count - self._descriptors} files are left open"
        self._descriptors = count

    def seeds(self) -> dict[str, bytes]:
        """The pools as they are, and each operation on each kind of structure."""
        made = {f"sound-{which}": bytes([which]) for which in range(len(self._bases))}
        chance = random.Random(1)
        for number, kind in enumerate(self._kinds):
            for operation in range(len(edits.FILE_OPERATIONS if kind == "file" else edits.OPERATIONS)):
                edit = edits.EDIT.pack(number, operation, chance.randrange(8), 16, 2, 3)
                made[f"{kind}-{operation}"] = bytes([operation % len(self._bases)]) + edit
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        return edits.mutate(data, chance)

    def close(self) -> None:
        shutil.rmtree(self._directory)


def make(name: str) -> Harness:
    return Pools(name)


def write(damage: Damage, path: Path) -> None:
    base_pools.write(damage.files, path)
    for name, size_bytes in damage.sizes.items():
        if name in damage.files:
            os.truncate(path / name, size_bytes)


def use(path: Path) -> bool:
    """Open the pool, use what is in it, close it.  True when it was opened, and closed without an error."""
    try:
        pool = Pool.open(path, **SMALL)
    except REFUSALS as refusal:
        assert refusal.message and "\n" not in refusal.message
        return False
    try:
        pool.load_dedup()
        things = [*pool.vdisks(), *pool.snapshots()][:OBJECTS_MAX]
        for thing in things:
            read(thing)
        for older, newer in ((None, things[0]), (things[-1], things[0])) if things else ():
            if newer.size_bytes <= DIFF_BYTES_MAX:
                attempt(lambda older=older, newer=newer: pool.diff(older, newer))
        attempt(pool.scrub)
        attempt(pool.inspector.known)
        for vdisk in pool.vdisks()[:: max(1, len(pool.vdisks()) - 1)][:2]:  # the first and the last
            change(pool, vdisk)
        attempt(lambda: pool.delete(things[-2:]))
        attempt(pool.checkpoint)
        attempt(pool.compact)
        pool.tend_memory()
        poisoned = pool.stats()["poisoned"]
    except BaseException:
        with suppress(errors.BlockdevError):
            pool.close()
        raise
    return attempt(pool.close) and not poisoned


def use_again(path: Path) -> None:
    """What was closed as it should be can be opened; but that numbers end somewhere is no defect."""
    try:
        pool = Pool.open(path, **SMALL)
    except errors.Corrupt as refusal:
        assert "nobody counts to" in refusal.message
        return
    try:
        for thing in [*pool.vdisks(), *pool.snapshots()][:OBJECTS_MAX]:
            attempt(lambda thing=thing: thing.read(0, min(thing.size_bytes, BLOCK)))
    finally:
        pool.close()


def attempt(step: Callable[[], object]) -> bool:
    """Whether it went without an operating error.  Anything else is not caught."""
    try:
        step()
    except errors.BlockdevError as error:
        assert error.message and "\n" not in error.message
        # what a bug in an inspection becomes; that a table of 2^32 nodes asks for much memory is none
        assert type(error) is not errors.BlockdevError or "MemoryError" in error.message, error
        return False
    return True


def read(thing: VDisk | VDiskSnapshot) -> None:
    """Its beginning and its end: there are blocks of the pool as it was made."""
    size = thing.size_bytes
    for offset in {0, max(0, size - WINDOW_BYTES)}:
        length = min(WINDOW_BYTES, size - offset)
        attempt(lambda offset=offset, length=length: thing.read(offset, length))
        attempt(lambda offset=offset, length=length: thing.extents(offset, length))


def change(pool: Pool, vdisk: VDisk) -> None:
    size = vdisk.size_bytes
    attempt(lambda: vdisk.write(0, distinct_blocks(0, 4)[:size]))  # blocks that the dedup index knows
    attempt(lambda: vdisk.write(max(0, size - 512), b"y" * 512, fua=True))
    attempt(lambda: pool.snapshot([vdisk], [None]))
    attempt(lambda: vdisk.write(0, distinct_blocks(7000 + vdisk.id % 100, 2)[:size]))
    attempt(lambda: vdisk.discard(0, min(size, 3 * MEBIBYTE)))
    attempt(lambda: pool.resize(vdisk, size + MEBIBYTE))
    snapshots = pool.snapshots()[:1]
    attempt(lambda: pool.clone_many([(snapshot, None, b"") for snapshot in snapshots]))
    attempt(lambda: pool.restore([(vdisk, snapshot) for snapshot in snapshots]))
    attempt(lambda: vdisk.write_zeroes(0, vdisk.size_bytes))
    attempt(lambda: pool.resize(vdisk, 512))
