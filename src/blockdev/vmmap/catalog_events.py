"""The catalog's events: something noteworthy each, the newest EVENTS_MAX of them (docs/jobs.md).

Threads: any, as database.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blockdev.vmmap.database import Database

EVENTS_MAX = 10_000  # kept


class EventRow(NamedTuple):
    """Something noteworthy."""

    id: int
    time: str
    level: str  # info, warning, error
    kind: str
    vm: str | None
    message: str


class EventRecords(Database):
    """The rows of `event`."""

    def add_event(self, time: str, level: str, kind: str, vm: str | None, message: str) -> None:
        """Note something; the oldest are forgotten."""
        event_id = self._do(
            "INSERT INTO event (time, level, kind, vm, message) VALUES (?, ?, ?, ?, ?)", time, level, kind, vm, message
        )
        self._do("DELETE FROM event WHERE id <= ?", event_id - EVENTS_MAX)

    def events(
        self,
        vm: str | None,
        levels: Sequence[str],
        before: int | None,
        count: int,
        kind: str | None = None,
        after: int | None = None,
    ) -> list[EventRow]:
        """Those older than the event `before` and newer than `after`: with `after` the oldest first, else the newest."""
        marks = ", ".join("?" * len(levels))
        return self._rows(
            EventRow,
            f"SELECT * FROM event WHERE (? IS NULL OR vm = ?) AND level IN ({marks}) AND (? IS NULL OR kind = ?)"
            f" AND id < ? AND id > ? ORDER BY id {'DESC' if after is None else 'ASC'} LIMIT ?",
            *(vm, vm, *levels, kind, kind, (1 << 63) - 1 if before is None else before, after or 0, count),
        )
