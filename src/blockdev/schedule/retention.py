"""Which snapshots go: those that expired, but for what is locked, needed, or the last good one of a schedule that fails."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

FOREVER = float("inf")


class Kept(NamedTuple):
    """One snapshot, as far as retention goes; times are seconds since 1970."""

    name: str
    schedule: str | None  # that took it
    lsn: int
    expires: float = FOREVER
    locked_until: float = 0.0
    is_held: bool = False  # replication needs it, or is to send it


def expired(snapshots: Sequence[Kept], now: float, failing: Collection[str]) -> list[Kept]:
    """Those of one VM that are to be deleted now, oldest first.  failing: schedules whose latest run failed."""
    newest: dict[str, int] = {}
    for one in snapshots:
        if one.schedule is not None:
            newest[one.schedule] = max(newest.get(one.schedule, 0), one.lsn)
    return sorted(
        (
            one
            for one in snapshots
            if one.expires <= now
            and one.locked_until <= now
            and not one.is_held
            and not (one.schedule in failing and one.lsn == newest.get(one.schedule or ""))
        ),
        key=lambda one: one.lsn,
    )
