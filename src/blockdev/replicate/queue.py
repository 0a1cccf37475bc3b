"""Which snapshots of a protected VM are still to be sent, and what the schedules that took them say of it."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from blockdev.replicate.lanes import Pending
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import ProtectionRow
from blockdev.vmmap.names import is_unfinished


class Rules:
    """What schedules say of replication, at one moment (schedule.rules.Schedule's JSON)."""

    def __init__(self, catalog: Catalog) -> None:
        self._sets = catalog.schedules()

    def is_sent(self, vm: VMRow, snapshot: SnapshotRow) -> bool:
        """Whether it is to be replicated; one of a schedule that is no more is."""
        return bool((self._schedule(vm, snapshot) or {}).get("replicate", True))

    def keep_seconds(self, vm: VMRow, snapshot: SnapshotRow, protection: ProtectionRow) -> int | None:
        """How long the other end keeps it; None: until somebody deletes it."""
        schedule = self._schedule(vm, snapshot)
        if schedule is None:
            return protection.keep_seconds
        return int(schedule.get("keep_remote_seconds") or schedule["keep_seconds"])

    def _schedule(self, vm: VMRow, snapshot: SnapshotRow) -> dict[str, Any] | None:
        if snapshot.schedule is None:
            return None
        bodies = self._sets.get(vm.id if vm.own_schedules else None, [])
        return next((body for body in bodies if body["name"] == snapshot.schedule), None)


def queued_snapshots(catalog: Catalog, protection: ProtectionRow, vm: VMRow, rules: Rules) -> list[Pending]:
    """In the order that they are sent in."""
    after = -1 if protection.newest_lsn is None else protection.newest_lsn
    rows = catalog.snapshots_from(vm.id, max(protection.from_lsn, after + 1))
    return [as_pending(row) for row in rows if not is_unfinished(row.description) and rules.is_sent(vm, row)]


def as_pending(row: SnapshotRow) -> Pending:
    return Pending(row.id, row.uuid, row.name, seconds_of(row.created), row.lsn)


@lru_cache(maxsize=65536)
def seconds_of(time: str) -> float:
    """Seconds since 1970 of a time in the catalog."""
    return datetime.fromisoformat(time).timestamp()
