"""What the queue of a protected VM is made of: holds.py says which snapshots are in it."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from blockdev.replicate.lanes import Pending
from blockdev.vmmap.catalog import SnapshotRow


def as_pending(row: SnapshotRow) -> Pending:
    return Pending(row.id, row.uuid, row.name, seconds_of(row.created), row.lsn, row.asked != row.consistency)


@lru_cache(maxsize=65536)
def seconds_of(time: str) -> float:
    """Seconds since 1970 of a time in the catalog."""
    return datetime.fromisoformat(time).timestamp()
