"""Which snapshots replication still sends, and which it needs, so that their time being over does not end them.

Needed are, of a VM that is protected, the newest snapshot that the other end has, which the next one is compared with, and
what is still to be sent; of one that is received, the newest that came, and what is newer, as a peer that takes the VM
back may have that, too; of one that was promoted the newest that came, which a reverse is compared with, for as long as it
is known whom it came from; and what a half-received one was begun on.  All of it costs bytes when it is gone, and nothing
else: whoever deletes such a snapshot by hand may.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import ProtectionRow
from blockdev.vmmap.names import is_unfinished
from blockdev.vmmap.receipts import base_uuid_of
from blockdev.vmmap.snapshots import scheduled_cap


class Rules:
    """What schedules say of replication, at one moment (schedule.rules.Schedule's JSON)."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._sets = catalog.schedules()

    @cached_property
    def _lacking(self) -> set[int]:
        """Looked for when it is asked for: it takes a look at the disks of all snapshots."""
        return self._catalog.snapshots_lacking_disks()

    def lacks_disk(self, snapshot: SnapshotRow) -> bool:
        """Whether the pool has lost a disk of it: nobody can send it any more, and those that come after it do not wait for it."""
        return snapshot.id in self._lacking

    def is_sent(self, vm: VMRow, snapshot: SnapshotRow) -> bool:
        """Whether it is to be replicated; one of a schedule that is no more is."""
        if is_unfinished(snapshot.description) or self.lacks_disk(snapshot):
            return False
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


def queued_snapshots(catalog: Catalog, protection: ProtectionRow, vm: VMRow, rules: Rules) -> list[SnapshotRow]:
    """What is still to be sent over a path, in the order that it is sent in."""
    return [row for row in snapshots_not_there(catalog, protection, vm) if rules.is_sent(vm, row)]


def snapshots_not_there(catalog: Catalog, protection: ProtectionRow, vm: VMRow) -> list[SnapshotRow]:
    """What the other end of a path has not, oldest first: of these some are sent."""
    after = -1 if protection.newest_lsn is None else protection.newest_lsn
    return catalog.snapshots_from(vm.id, max(protection.from_lsn, after + 1))


def held_ids(catalog: Catalog, vm: VMRow, rules: Rules) -> set[int]:
    """Ids of a VM's snapshots that do not expire now."""
    held = {id for protection in catalog.protections(vm.id) for id in _held_for(catalog, protection, vm, rules)}
    received = catalog.received_vm(vm.id)
    if received is not None:
        newest_lsn = catalog.newest_received_lsn(vm.id)
        rows = catalog.snapshots_from(vm.id, newest_lsn)
        held.update(row.id for row in rows if received.promoted is None or row.lsn == newest_lsn)
        bases = [base_uuid_of(receipt) for receipt in catalog.receipts_into(vm.id)]
        found = (catalog.snapshot_of_uuid(vm.id, base) for base in bases if base is not None)
        held.update(one.id for one in found if one is not None)
    return held


def _held_for(catalog: Catalog, protection: ProtectionRow, vm: VMRow, rules: Rules) -> set[int]:
    """Of a queue that has grown long, as when the other end is away for weeks, the first and the newest: half of the cap
    on scheduled snapshots at the most, so that schedules go on."""
    queued = [row.id for row in queued_snapshots(catalog, protection, vm, rules)]
    held = {*queued[:1], *queued[-(scheduled_cap(catalog) // 2) :]}
    if protection.newest_lsn is None or protection.newest_uuid is None:
        return held
    newest = catalog.snapshot_of_uuid(vm.id, protection.newest_uuid)
    if newest is not None:
        return held | {newest.id}
    older = [row.id for row in catalog.snapshots_until(vm.id, protection.newest_lsn) if rules.is_sent(vm, row)]
    return held.union(older[-1:])  # it was deleted by hand
