"""Received VMs: a peer sends their snapshots, they have no disks, and nobody here changes them until they are promoted.

To promote is to restore a snapshot of it; to demote is to take the disks away, and keep what they held in a snapshot.
"""

from __future__ import annotations

from blockdev.errors import AlreadyExists, InvalidArgument, NotFound
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.clones import CloneOperations
from blockdev.vmmap.lookup import looks_received, object_ids, present, refuse_importing
from blockdev.vmmap.model import Demoted, Restored, Terms
from blockdev.vmmap.names import object_name
from blockdev.vmmap.operation import change, refreshing
from blockdev.vmmap.receipts import ReceiptOperations
from blockdev.vmmap.views import view_vm


class ReceivedOperations(CloneOperations, ReceiptOperations):
    """The operations that give a received VM to this home, and take one away from it."""

    @change
    def promote(self, vm: str, snapshot: str | None = None) -> Restored:
        """Give a received VM the disks and configuration of its newest snapshot, or another one; its peer can send no more.

        InvalidArgument: it is not received, or promoted already; NotFound: it has no snapshot.
        """
        row = self._lookup.vm(vm)
        received = self._catalog.received_vm(row.id)
        if received is not None and received.promoted is not None:
            raise InvalidArgument(f"VM {vm} was promoted already, at {received.promoted}")
        if received is None and not looks_received(self._catalog, row):
            raise InvalidArgument(f"VM {vm} is not received from anywhere: it is this home's already")
        wanted = self._newest_snapshot(row) if snapshot is None else self._lookup.snapshot(row, snapshot)
        disks = self._catalog.snapshot_disks(wanted.id)
        sources = {one.name: present(one, object_name(vm, one.name, wanted.name)) for one in disks}
        now = self._journal.now()
        intent = intents.Restore(
            *(row.id, row.uuid, vm, wanted.name, wanted.id, True), [[name, None] for name in sources], now, promotes=True
        )
        places = [(name, None, now) for name in sources]
        half_received = self._vdisk_ids(self._catalog.receipts_into(row.id))
        self._journal.run(intent, lambda: self._put_back(row, list(sources.values()), places, force=False))
        if half_received:
            self._journal.drop(half_received)
        return Restored(view_vm(self._catalog, self._lookup.vm(vm), {}), wanted.name, list(sources), None)

    @refreshing
    @change
    def demote(self, vm: str, peer_id: int, force: bool = False) -> Demoted:
        """Make a VM one that a peer sends: its disks go, its snapshots stay, it is protected over no path any more.

        What the disks hold is kept in a snapshot of origin `restore`, unless the newest one holds the same.  Busy:
        a client is attached, or an image is being imported; forced, clients are cut off.  Its domain stays, and has no
        disks until the VM is promoted.
        """
        row = self._lookup.vm(vm)
        if self._catalog.peer_by_id(peer_id) is None:
            raise NotFound("there is no such peer")
        received = self._catalog.receiving_vm(row.id)
        if received is not None:
            if received.peer_id != peer_id:
                raise AlreadyExists(f"VM {vm} is received from {self._peer_name(received.peer_id)}: promote it first")
            return Demoted(view_vm(self._catalog, row, {}), None)
        refuse_importing(row, self._catalog.imports(row.id))
        ids = object_ids(self._catalog.disks(row.id))
        with self.offers.letting_go(ids, force) as logged_out:
            if not force:
                self._lookup.refuse_attached(ids, "detach first, or force it (--force): they are cut off then and get errors")
            cut_off = [*logged_out, *self._lookup.attached(ids)]
            safety = self._keep_what_disks_hold(row)
            intent = intents.DemoteVM(row.id, vm, ids, peer_id, self._journal.now())
            self._delete(intent, ids, force)
        return Demoted(view_vm(self._catalog, row, {}), safety.name if safety else None, cut_off)

    def _newest_snapshot(self, vm: VMRow) -> SnapshotRow:
        snapshots = self._catalog.snapshots(vm.id)
        if not snapshots:
            raise NotFound(f"VM {vm.name} has no snapshot to be promoted to")
        return snapshots[-1]

    def _keep_what_disks_hold(self, vm: VMRow) -> SnapshotRow | None:
        if not object_ids(self._catalog.disks(vm.id)) or self._is_as_newest(vm):
            return None
        return self._take_snapshot(
            vm, self._time_name(vm, "demoted-"), "before it was received", Terms("restore"), skip_missing=True
        )

    def _is_as_newest(self, vm: VMRow) -> bool:
        """Whether disks and configuration are those of the newest snapshot.  Cost: a look at the first difference."""
        snapshots = self._catalog.snapshots(vm.id)
        if not snapshots or snapshots[-1].config_id != vm.config_id:
            return False
        disks = {disk.name: disk for disk in self._catalog.disks(vm.id)}
        parts = {part.name: part for part in self._catalog.snapshot_disks(snapshots[-1].id)}
        if {name: one.size_bytes for name, one in disks.items()} != {name: one.size_bytes for name, one in parts.items()}:
            return False
        pairs = [(parts[name].object_id, disk.object_id) for name, disk in disks.items()]
        return all(
            older is not None and newer is not None and self._engine.offers(older, newer, 0, 1) == (b"", None)
            for older, newer in pairs
        )
