"""An nbdkit plugin: a disk with a volatile write cache, whose power fails when nbdkit ends.

    nbdkit python volatile_disk.py file=IMAGE seed=N state=DIRECTORY [keep=SHARE]

IMAGE holds what is durable.  A write goes to the cache, which all reads see; a flush moves the cache to IMAGE, a write with
FUA is certain from then on.  When nbdkit ends, a random part of the cache reaches IMAGE, decided by `seed` alone: each write
is kept, lost, or torn (some of its sectors are kept), in the order of writing, as a drive that had begun to write back some
of it would leave them.  `keep` sets the share that is kept and tears nothing.

Files in DIRECTORY tell the disk what to do:
  deaf      as long as it exists, flushes and FUA are acknowledged and nothing else: a disk that lies
  freeze    from then on nothing is answered: at once, or, if it says "flush", from the next flush on, which is not done
  off       requests that wait for an answer fail
It makes `frozen` when it is, and `report`, the figures as JSON, in the end.

A flush takes as long as on a rotating disk, and no other request runs meanwhile, so nothing here is locked.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbdkit

API_VERSION = 2
SECTOR_BYTES = 512
KEEP_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)
TORN_SHARE = 0.3  # of the writes in the cache
FLUSH_SECONDS_MAX = 0.03


class Cached(NamedTuple):
    """A write that is not in the image yet."""

    offset: int
    data: bytes
    certain: bool  # it was acknowledged with FUA


class Disk:
    """The image, what the guest sees, and what lies between the two."""

    def __init__(self, path: str, state: Path) -> None:
        self.image = os.open(path, os.O_RDWR)
        # private: pages that were written here are ours, all others show the image
        self.view = mmap.mmap(self.image, 0, access=mmap.ACCESS_COPY)
        self.cache: list[Cached] = []
        self.state = state
        # of requests; of those in the cache in the end; of the sectors of these
        counted = ("writes", "flushes", "ignored", "cached", "torn", "lost", "cached_sectors", "lost_sectors")
        self.counts = dict.fromkeys(counted, 0)

    def is_deaf(self) -> bool:
        return (self.state / "deaf").exists()

    def freeze_if_told(self, is_flush: bool = False) -> None:
        freeze = self.state / "freeze"
        if not freeze.exists() or (freeze.read_text() == "flush" and not is_flush):
            return
        (self.state / "frozen").touch()
        while not (self.state / "off").exists():
            time.sleep(0.005)
        raise OSError(errno.EIO, "the power has failed")

    def read(self, offset: int, length: int) -> bytes:
        self.freeze_if_told()
        return self.view[offset : offset + length]

    def write(self, offset: int, data: bytes, certain: bool) -> None:
        self.freeze_if_told()
        self.counts["writes"] += 1
        self.view[offset : offset + len(data)] = data
        self.cache.append(Cached(offset, data, certain and not self.is_deaf()))

    def flush(self) -> None:
        time.sleep(random.uniform(0, FLUSH_SECONDS_MAX))
        self.freeze_if_told(is_flush=True)
        self.counts["flushes"] += 1
        if self.is_deaf():
            self.counts["ignored"] += 1
            return
        for write in self.cache:
            os.pwrite(self.image, write.data, write.offset)
        self.cache.clear()

    def fail_power(self, seed: int, keep: float | None) -> None:
        source = random.Random(seed)
        torn_share = TORN_SHARE if keep is None else 0.0
        keep_share = source.choice(KEEP_SHARES) if keep is None else keep
        self.counts["cached"] = len(self.cache)
        for write in self.cache:
            sectors = len(write.data) // SECTOR_BYTES
            if write.certain:
                chosen: Sequence[int] = range(sectors)
            elif source.random() < torn_share:
                self.counts["torn"] += 1
                chosen = _torn(source, sectors)
            else:
                chosen = range(sectors if source.random() < keep_share else 0)
            self.counts["lost"] += not chosen
            self.counts["cached_sectors"] += sectors
            self.counts["lost_sectors"] += sectors - len(chosen)
            for sector in chosen:
                at = sector * SECTOR_BYTES
                os.pwrite(self.image, write.data[at : at + SECTOR_BYTES], write.offset + at)


def _torn(source: random.Random, sectors: int) -> Sequence[int]:
    """Half of the torn writes stop somewhere, the others have holes."""
    if source.random() < 0.5:
        return range(source.randrange(sectors + 1))
    return [sector for sector in range(sectors) if source.random() < 0.5]


_parameters: dict[str, str] = {}
_disk: Disk | None = None


def disk() -> Disk:
    assert _disk is not None
    return _disk


def config(key: str, value: str) -> None:
    _parameters[key] = value


def get_ready() -> None:
    global _disk
    _disk = Disk(_parameters["file"], Path(_parameters["state"]))


def cleanup() -> None:
    keep = _parameters.get("keep")
    disk().fail_power(int(_parameters["seed"]), None if keep is None else float(keep))
    (disk().state / "report").write_text(json.dumps(disk().counts))


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)


def open(readonly: bool) -> Disk:  # noqa: A001 (nbdkit's name for it)
    return disk()


def get_size(handle: Disk) -> int:
    return len(handle.view)


def can_fua(handle: Disk) -> int:
    return int(nbdkit.FUA_NATIVE)


def pread(handle: Disk, buffer: bytearray, offset: int, flags: int) -> None:
    buffer[:] = handle.read(offset, len(buffer))


def pwrite(handle: Disk, buffer: bytearray, offset: int, flags: int) -> None:
    handle.write(offset, bytes(buffer), bool(flags & nbdkit.FLAG_FUA))


def flush(handle: Disk, flags: int) -> None:
    handle.flush()
