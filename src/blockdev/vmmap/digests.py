"""Content digests of snapshots: each made once, from that of an older snapshot and what changed since, and then kept.

Nothing is changed but what the catalog knows, and nothing waits.
"""

from __future__ import annotations

from contextlib import suppress

from blockdev.errors import Gone, NotFound, PoolFull
from blockdev.vmmap.catalog import SnapshotDiskRow, SnapshotRow
from blockdev.vmmap.lookup import present
from blockdev.vmmap.operation import Operations


class DigestOperations(Operations):
    """The operations on content digests (_exchange.pxd)."""

    def snapshot_digests(self, snapshot_id: int) -> list[bytes]:
        """Those of a snapshot's disks, in the order of `Catalog.snapshot_disks`.

        Cost: nothing when they are known; a diff to the newest older snapshot of which they are; without one, a walk of
        the maps.  NotFound: it was deleted, or the pool lacks a disk of it.
        """
        with self._catalog.transaction():
            row = self._catalog.snapshot_by_id(snapshot_id)
            if row is None:
                raise NotFound("the snapshot was deleted")
            disks = self._catalog.snapshot_disks(row.id)
            older = self._catalog.newest_digests(row.vm_id, row.lsn)
        made = {disk.id: self._digest(row, disk, older.get(disk.name)) for disk in disks if disk.digest is None}
        if made:
            with suppress(PoolFull), self._catalog.transaction(grows=True):  # they can be made again, and replication goes on
                for disk in disks:
                    if disk.id in made and disk.object_id is not None:
                        self._catalog.set_digest(disk.object_id, made[disk.id])
        return [made[disk.id] if disk.digest is None else disk.digest for disk in disks]

    def _digest(self, snapshot: SnapshotRow, disk: SnapshotDiskRow, older: SnapshotDiskRow | None) -> bytes:
        object_id = present(disk, f"disk {disk.name} of snapshot {snapshot.name}")
        return self._digest_from(older, object_id)

    def _digest_from(self, base: SnapshotDiskRow | None, object_id: int) -> bytes:
        """By a diff to `base` where that has a digest and is still there; else by a walk."""
        if base is not None and base.object_id is not None and base.digest is not None:
            try:
                return self._engine.digest(base.object_id, base.digest, object_id)
            except (NotFound, Gone):  # deleted between the two looks, or else the next call says so
                pass
        return self._engine.digest(None, b"", object_id)
