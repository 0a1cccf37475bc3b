"""What clients wrote to a disk and what they were told of it: the contents that this allows after a crash, and at an instant.

Moments are numbers of one clock of this process.  A sector's value is its stamp (writer, and the moment when the write was
issued, see tests.engine.content), or 0 for zeros; so a stamp that is found tells how far the log survived.
What must hold: the pool has one log, so what survives is a prefix of it.  A write that was replied to before another was
issued is before it in the log, whatever connection or disk either was on.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.engine.content import read_stamps, stamped
from tests.engine.model import SECTOR

NEVER = sys.maxsize
Values: TypeAlias = NDArray[np.uint64]

_clock = itertools.count(1)


def moment() -> int:
    """Now, later than any that was given before."""
    return next(_clock)


def stamp_value(writer: int, issued: int) -> int:
    return writer | issued << 32


def value_bytes(value: int, first: int, count: int) -> bytes:
    """`count` sectors that hold `value`, as they look at sector `first`."""
    if value == 0:
        return bytes(count * SECTOR)
    return stamped(value & 0xFFFFFFFF, value >> 32, first * SECTOR, count * SECTOR)


def values_of(data: bytes | bytearray, first: int) -> Values:
    """The value of each sector.  Asserts that none is a mix of two writes or belongs elsewhere."""
    stamps = read_stamps(bytes(data), first * SECTOR)
    return np.array([writer | issued << 32 for writer, issued in stamps], dtype=np.uint64)


@dataclass(slots=True)
class Write:
    """One request that gives sectors `first`..`end` a value."""

    first: int
    end: int
    value: int
    issued: int
    replied: int = NEVER  # stays so when it failed: then any of its sectors may have changed
    durable: bool = False  # it was replied to, and had FUA, or is kept and only the engine dies


class Ledger:
    """The writes of one disk since its content was last known.  Those who write at once write to different sectors."""

    def __init__(self, sectors: int) -> None:
        self.base: Values = np.zeros(sectors, dtype=np.uint64)
        self.writes: list[Write] = []
        self.flushed = 0  # what was replied to before that moment is durable

    def issue(self, first: int, end: int, value: int, now: int) -> Write:
        write = Write(first, end, value, now)
        self.writes.append(write)
        return write

    def check(self, name: str, found: Values, since: int, until: int = NEVER, crashed: bool = True) -> None:
        """`found` must have what was replied to before `since` and nothing that was issued after `until`; after a crash also
        every write that had FUA."""
        right = found == self.base
        for write in self.writes:
            if write.issued > until:
                continue
            same = found[write.first : write.end] == write.value
            if write.replied < since or (crashed and write.durable):
                right[write.first : write.end] = same
            else:
                right[write.first : write.end] |= same
        if not right.all():
            raise AssertionError(f"{name}: {self._complaint(found, int(np.argmin(right)), since, until)}")

    def _complaint(self, found: Values, sector: int, since: int, until: int) -> str:
        of_sector = [write for write in self.writes if write.first <= sector < write.end]
        return (
            f"sector {sector} holds {shown(found[sector])}; it was {shown(self.base[sector])}, and since then "
            f"{[(shown(w.value), w.issued, w.replied) for w in of_sector]}; flushed {self.flushed}, looked at "
            f"what was replied to before {since} and issued before {until}"
        )

    def settle(self, found: Values) -> None:
        """From here on the disk is known to hold `found`, durably."""
        self.base = found
        self.writes = []


def shown(value: int) -> str:
    return f"{int(value) & 0xFFFFFFFF}@{int(value) >> 32}"


def newest_seen(found: Mapping[str, Values]) -> int:
    """The latest moment of which something survived; all that was replied to before it must have survived too."""
    return max(int(values.max()) >> 32 for values in found.values())


def check_crash(ledgers: Mapping[str, Ledger], found: Mapping[str, Values], survived: int) -> None:
    """The disks after a crash, as one state; something of the moment `survived` is known to have survived it."""
    newest = max(survived, newest_seen(found))
    for name, ledger in ledgers.items():
        ledger.check(name, found[name], max(newest, ledger.flushed))


def check_instant(
    ledgers: Mapping[str, Ledger], found: Mapping[str, Values], label: str, before: int, after: int
) -> None:
    """The disks at one instant between two moments, as one state: what a snapshot must hold."""
    newest = max(before, newest_seen(found))
    for name, ledger in ledgers.items():
        ledger.check(f"{name}@{label}", found[name], newest, after, crashed=False)
