"""How much of one VM moves over one way, and how fast: its transfer under way, and all since this process began.

Threads: any; a lock in each.  Times are seconds of a clock that never jumps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from blockdev.vmmap.catalog_replication import Direction

RECENT_SECONDS = 5.0


class Count(NamedTuple):
    """What moved."""

    logical: int  # bytes of changed blocks that were dealt with
    network: int  # bytes on the wire, both ways

    def plus(self, other: Count) -> Count:
        return Count(self.logical + other.logical, self.network + other.network)

    def minus(self, other: Count) -> Count:
        return Count(self.logical - other.logical, self.network - other.network)

    def per(self, seconds: float) -> Count:
        return NOTHING if seconds <= 0 else Count(int(self.logical / seconds), int(self.network / seconds))


NOTHING = Count(0, 0)


class Rates(NamedTuple):
    recent: Count  # per second, over the last seconds
    mean: Count  # per second, since the transfer began


STILL = Rates(NOTHING, NOTHING)


class Moving(NamedTuple):
    """A transfer under way."""

    snapshot: str
    snapshot_uuid: str
    since: float
    read: Callable[[], Count]  # what it moved so far
    remaining: Callable[[], int | None]  # bytes of changed blocks; None: not known


class Flow:
    """One VM over one way."""

    def __init__(self, direction: Direction, way: str, vm: str, vm_uuid: str) -> None:
        self.direction = direction
        self.way = way
        self.vm = vm
        self.vm_uuid = vm_uuid
        self._lock = threading.Lock()
        self._moving: Moving | None = None
        self._ended = NOTHING  # what transfers that ended moved
        self._sampled = NOTHING
        self._marks: deque[tuple[float, Count]] = deque()  # of the transfer under way

    @property
    def moving(self) -> Moving | None:
        return self._moving

    def begin(self, moving: Moving) -> None:
        with self._lock:
            self._moving = moving
            self._marks.clear()
            self._marks.append((moving.since, NOTHING))

    def end(self, moving: Moving) -> Count:
        """What a transfer moved that is over now, while another one may have begun already."""
        with self._lock:
            moved = moving.read()
            self._ended = self._ended.plus(moved)
            if self._moving is moving:
                self._moving = None
                self._marks.clear()
            return moved

    def mark(self, now: float) -> None:
        """To be called each second or so."""
        with self._lock:
            if self._moving is None:
                return
            self._marks.append((now, self._moving.read()))
            while len(self._marks) > 2 and self._marks[1][0] <= now - RECENT_SECONDS:
                self._marks.popleft()

    def total(self) -> Count:
        """By all since this process began."""
        with self._lock:
            return self._total()

    def rates(self, now: float) -> Rates:
        with self._lock:
            if self._moving is None:
                return STILL
            count = self._moving.read()
            then, before = self._marks[0]
            return Rates(count.minus(before).per(now - then), count.per(now - self._moving.since))

    def sample(self) -> Count:
        """What moved since the sample before."""
        with self._lock:
            total = self._total()
            moved = total.minus(self._sampled)
            self._sampled = total
            return moved

    def _total(self) -> Count:
        return self._ended if self._moving is None else self._ended.plus(self._moving.read())
