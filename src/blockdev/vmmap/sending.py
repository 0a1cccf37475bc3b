"""What is sent of a VM to another home: a snapshot as the other one is told of it, and what a peer's snapshots take here.

Nothing is changed, and nothing waits.
"""

from __future__ import annotations

from typing import NamedTuple

from blockdev.accounting import Group
from blockdev.engine.protocol import ITEMS_MAX
from blockdev.errors import NotFound
from blockdev.vmmap.catalog_replication import PeerRow
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.lookup import looks_received, object_ids, present
from blockdev.vmmap.model import Terms
from blockdev.vmmap.names import is_unfinished, object_name
from blockdev.vmmap.operation import Operations


class SentSnapshot(NamedTuple):
    """A snapshot that is to be sent."""

    snapshot_id: int  # the catalog's
    copy: SnapshotCopy  # with no base: the receiver chooses it
    ancestors: list[str]  # uuids of the VM's older snapshots, newest first
    object_ids: list[int]  # the pool's, of copy.disks


class SendingOperations(Operations):
    """What replication asks of the catalog without changing it."""

    def sent_snapshot(self, vm_id: int, snapshot_uuid: str) -> SentSnapshot:
        """NotFound: it was deleted, or the pool lacks a disk of it."""
        with self._catalog.transaction():
            vm = self._catalog.vm_by_id(vm_id)
            rows = self._catalog.snapshots(vm_id)
            row = self._catalog.snapshot_of_uuid(vm_id, snapshot_uuid)
            if vm is None or row is None:
                raise NotFound("the snapshot that was to be sent was deleted")
            disks = self._catalog.snapshot_disks(row.id)
            config = self._catalog.config_text(row.config_id)
        copy = SnapshotCopy(
            uuid=row.uuid,
            name=row.name,
            description="" if is_unfinished(row.description) else row.description,  # there nobody waits for its end
            created=row.created,
            lsn=row.lsn,
            terms=Terms("replication", row.consistency, row.asked, row.frozen_ms),
            config=config,
            disks=[CopiedDisk(disk.name, disk.size_bytes, False) for disk in disks],
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            base_uuid=None,
            base_name="",
        )
        older = [one.uuid for one in reversed(rows) if one.lsn < row.lsn and not is_unfinished(one.description)]
        ids = [present(disk, object_name(vm.name, disk.name, row.name)) for disk in disks]
        return SentSnapshot(row.id, copy, older, ids)

    def snapshot_objects(self, vm_id: int, snapshot_uuid: str) -> dict[str, int]:
        """The pool's ids of the disks of one of a VM's snapshots, by their names.  NotFound."""
        with self._catalog.transaction():
            row = self._catalog.snapshot_of_uuid(vm_id, snapshot_uuid)
            if row is None:
                raise NotFound("a snapshot of the VM was deleted")
            disks = self._catalog.snapshot_disks(row.id)
        return {disk.name: present(disk, f"disk {disk.name} of snapshot {row.name}") for disk in disks}

    def peer_now(self, peer_id: int) -> PeerRow:
        """What a peer may do by now.  NotFound: it was removed."""
        found = self._catalog.peer_by_id(peer_id)
        if found is None:
            raise NotFound("you are no peer of this home any more")
        return found

    def names_of_nobody(self, vm_uuid: str) -> list[str]:
        """What the VM of this uuid is called here, if it came from a peer that nobody knows any more: another may go on with it."""
        with self._catalog.transaction():
            row = self._catalog.vm_of_uuid(vm_uuid)
            if row is None or self._catalog.received_vm(row.id) is not None or not looks_received(self._catalog, row):
                return []
            return [row.name]

    def peer_bytes(self, peer_id: int) -> int:
        """What deleting all that a peer has sent and had made would give back, with the maps.  Cost: a walk over all maps.

        Maps count, as who names blocks that are here already takes no other space.
        """
        with self._catalog.transaction():
            made = {row.vm_id for row in self._catalog.made_vms(peer_id)}
            received = {row.vm_id for row in self._catalog.receiving_vms(peer_id)}
            ids = [id for vm_id in sorted(made | received) for id in object_ids(self._catalog.snapshot_disks_of_vm(vm_id))]
            ids += [id for vm_id in sorted(made) for id in object_ids(self._catalog.disks(vm_id))]
            for one in self._catalog.receipts(peer_id):
                ids += [disk.object_id for disk in self._catalog.receipt_disks(one.id)]
        things: list[tuple[int, int | None]] = [(id, None) for id in ids]
        lists = [things[place : place + ITEMS_MAX] for place in range(0, len(things), ITEMS_MAX)]
        usage = self._engine.account([Group([], lists)])
        return usage.groups[0].unique_stored_bytes + usage.groups[0].unique_maps_bytes
