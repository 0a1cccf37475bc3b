"""What is to be sent and when it is attempted: a lane for each protection, a way for each path.  No I/O, no clock of its own.

A lane sends one snapshot at a time, in the order of LSNs.  A way has up to LANES_MAX lanes under way, those whose oldest
snapshot is oldest first; while its other end is not reached one lane at a time tries.
Attempts that were cut are made again after RETRY_SECONDS_MIN, doubled up to RETRY_SECONDS_MAX, at once after progress;
what the other end refused after REFUSED_SECONDS, or when somebody asks.
Threads: whoever holds the dispatcher's lock.  Times are seconds of a clock that never jumps, but for `created`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from blockdev.errors import BlockdevError
from blockdev.replicate.flow import Flow
from blockdev.replicate.halt import Halt
from blockdev.vmmap.catalog_replication import PathRow, ProtectionRow

LANES_MAX = 8  # transfers at once over one path
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 1.0, 60.0
REFUSED_SECONDS = 300.0


@dataclass
class Retry:
    """When something is attempted again, and why not before."""

    at: float = 0.0
    seconds: float = 0.0  # waited before the next attempt
    failures: int = 0  # one after the other
    is_refused: bool = False
    error: BlockdevError | None = None

    def cut(self, now: float, error: BlockdevError, has_progress: bool) -> None:
        """The attempt was cut."""
        if has_progress:
            self.seconds, self.failures = 0.0, 0
        else:
            self.seconds = min(max(self.seconds * 2, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
            self.failures += 1
        self._wait(now, error, False)

    def refuse(self, now: float, error: BlockdevError) -> None:
        """The other end, or our own, will not do it."""
        self.failures += 1
        self.seconds = REFUSED_SECONDS
        self._wait(now, error, True)

    def reset(self) -> None:
        """It works, or is to be attempted whatever was before."""
        self.at, self.seconds, self.failures, self.is_refused, self.error = 0.0, 0.0, 0, False, None

    def hurry(self) -> None:
        """At once, without forgetting what failed."""
        self.at = self.seconds = 0.0

    def _wait(self, now: float, error: BlockdevError, is_refused: bool) -> None:
        self.at, self.error, self.is_refused = now + self.seconds, error, is_refused


class Pending(NamedTuple):
    """A snapshot that is to be sent."""

    id: int
    uuid: str
    name: str
    created: float  # seconds since 1970
    lsn: int
    asks_more: bool = False  # than its label says


@dataclass
class Way:
    """A path."""

    row: PathRow
    retry: Retry = field(default_factory=Retry)
    is_down: bool = False  # the last attempt to connect failed


@dataclass
class Lane:
    """A protection."""

    row: ProtectionRow
    flow: Flow
    pending: list[Pending] = field(default_factory=list)  # oldest first
    is_held: bool = False  # its VM is received, or not whole
    is_labelling: bool = False  # what asks for more than its label says may get another one yet, with which it is to be sent
    retry: Retry = field(default_factory=Retry)
    halt: Halt | None = None  # of the transfer under way
    sizes: dict[tuple[str | None, str], int] = field(default_factory=dict)  # uuids of two snapshots -> bytes that differ

    @property
    def key(self) -> tuple[int, int]:
        return self.row.vm_id, self.row.path_id

    def lag_seconds(self, now: float) -> float:
        """Since the oldest snapshot was taken that is not there; now: seconds since 1970."""
        return max(now - self.pending[0].created, 0.0) if self.pending else 0.0

    def is_over_rpo(self, now: float, part: float = 1.0) -> bool:
        return self.row.rpo_seconds is not None and self.lag_seconds(now) > self.row.rpo_seconds * part

    def waits(self) -> bool:
        """For its turn or its time."""
        if not self.pending or self.halt is not None or self.row.paused or self.is_held:
            return False
        return not (self.is_labelling and self.pending[0].asks_more)

    def bytes_remaining(self) -> int | None:
        """Of changed blocks that are to be dealt with still; None: not counted yet."""
        total, older, moving = 0, self.row.newest_uuid, self.flow.moving
        for one in self.pending:
            size = self.sizes.get((older, one.uuid))
            if moving is not None and moving.snapshot_uuid == one.uuid:
                left = moving.remaining()
                size = size if left is None else left
            if size is None:
                return None
            total, older = total + size, one.uuid
        return total


def choose(lanes: Iterable[Lane], ways: dict[int, Way], now: float, unseen: Collection[int]) -> list[Lane]:
    """Which lanes are to begin a transfer.

    unseen: ids of VMs that are to be looked at before: what their lanes say is of before the transfer that has just ended.
    """
    all_lanes = list(lanes)
    running = Counter(lane.row.path_id for lane in all_lanes if lane.halt is not None)
    waiting = [lane for lane in all_lanes if lane.waits() and lane.retry.at <= now and lane.row.vm_id not in unseen]
    chosen = []
    for lane in sorted(waiting, key=lambda one: (one.pending[0].created, one.key)):
        way = ways.get(lane.row.path_id)
        if way is None or way.retry.at > now or running[lane.row.path_id] >= (1 if way.is_down else LANES_MAX):
            continue
        running[lane.row.path_id] += 1
        chosen.append(lane)
    return chosen


def next_time(lanes: Iterable[Lane], ways: dict[int, Way], now: float) -> float | None:
    """When there is something to choose again, if nothing happens; None: never."""
    times = [
        max(lane.retry.at, ways[lane.row.path_id].retry.at)
        for lane in lanes
        if lane.waits() and lane.row.path_id in ways
    ]
    return min((time for time in times if time > now), default=None)
