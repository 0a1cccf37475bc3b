"""What the queue of a protected VM is made of: holds.py says which snapshots are in it."""

from __future__ import annotations

from blockdev.replicate.lanes import Pending
from blockdev.vmmap.catalog import SnapshotRow
from blockdev.vmmap.clock import seconds_of


def as_pending(row: SnapshotRow) -> Pending:
    return Pending(row.id, row.uuid, row.name, seconds_of(row.created), row.lsn, row.asked != row.consistency)
