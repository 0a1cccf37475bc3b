"""Snapshots of VMs: taking, keeping and deleting them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from blockdev.errors import Busy
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.lookup import object_ids
from blockdev.vmmap.model import (
    MANUAL,
    Snapshot,
    Terms,
)
from blockdev.vmmap.names import (
    DESCRIPTION_BYTES_MAX,
    check_text,
)
from blockdev.vmmap.operation import Operations, change
from blockdev.vmmap.views import (
    view_snapshots,
)

SCHEDULED_SNAPSHOTS_MAX = 256  # of one VM, unless the catalog says another cap
SCHEDULED_CAP = "scheduled_snapshots_max"

Place = tuple[int, int]  # among the snapshots of a VM: LSN, id


def scheduled_cap(catalog: Catalog) -> int:
    """How many snapshots of schedules a VM may have."""
    return int(catalog.setting(SCHEDULED_CAP) or SCHEDULED_SNAPSHOTS_MAX)


class SnapshotOperations(Operations):
    """The operations on snapshots."""

    @change
    def create_snapshot(
        self,
        vm: str,
        name: str | None = None,
        description: str = "",
        terms: Terms = MANUAL,
        keep_seconds: float | None = None,
    ) -> Snapshot:
        """All disks of the VM at one LSN, and its configuration.  Without a name, the time is the name.

        keep_seconds: it expires so long from now; else as `terms` say.
        """
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        check_text("description", description, DESCRIPTION_BYTES_MAX)
        if name is not None:
            self._lookup.check_new_snapshot(row, name)
        if keep_seconds is not None:
            terms = terms._replace(expires=to_text(self._clock() + keep_seconds))
        if terms.schedule is not None:
            self._refuse_over_cap(row)
        taken = self._take_snapshot(row, name or self._time_name(row), description, terms)
        return self._view_snapshot(row, taken, {})

    @change
    def change_snapshot(self, vm: str, snapshot: str, change: Mapping[str, Any]) -> Snapshot:
        """Set what `change` names: description, expires, locked_until (ISO 8601 UTC, None: never, not locked)."""
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        check_text("description", change.get("description", ""), DESCRIPTION_BYTES_MAX)
        wanted = {
            "description": found.description,
            "expires": found.expires,
            "locked_until": found.locked_until,
            **change,
        }
        with self._catalog.transaction(grows=True):
            self._catalog.set_snapshot_terms(found.id, **wanted)
        self._tell_unlocked(row, found, wanted["locked_until"])
        return self._view_snapshot(row, self._lookup.snapshot(row, snapshot))

    def _tell_unlocked(self, vm: VMRow, was: SnapshotRow, locked_until: str | None) -> None:
        before, now = was.locked_until or "", locked_until or ""
        if before > self._journal.now() and now < before:
            until = f"it is locked until {now}" if now else "it is not locked"
            message = f"the lock of snapshot {vm.name}@{was.name} until {before} was released: {until} now"
            self.events.note("warning", "snapshot", vm.name, message)

    @contextmanager
    def labelling(self, vm: str) -> Iterator[None]:
        """While a snapshot of the VM is taken of which it is known later how consistent it is: whoever sends it waits for that."""
        vm_id = self._lookup.vm(vm).id
        with self._labelling_lock:
            self._labelling[vm_id] += 1
        try:
            yield
        finally:
            with self._labelling_lock:
                self._labelling[vm_id] -= 1
                self._labelling += Counter()  # those of none go
            self.on_snapshot(vm_id)

    def is_labelling(self, vm_id: int) -> bool:
        """Whether a snapshot of it that asks for more than it says may come to say more."""
        with self._labelling_lock:
            return vm_id in self._labelling

    @change
    def note_consistency(self, vm: str, snapshot: str, frozen_ms: int) -> Snapshot:
        """The guest was frozen, whole, while the snapshot was taken: say so, and for how long."""
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        with self._catalog.transaction():
            self._catalog.set_snapshot_consistency(found.id, "vm", frozen_ms)
        return self._view_snapshot(row, self._lookup.snapshot(row, snapshot), {})

    @change
    def expire_snapshots(self, snapshot_ids: list[int]) -> list[str]:
        """Delete snapshots whose time is over, all by one record; those that are locked or attached stay.

        Returns VM@SNAPSHOT of those that went.
        """
        attached = set(self._lookup.clients() or {})
        now = self._journal.now()
        going: list[tuple[SnapshotRow, list[int]]] = []
        for row in (self._catalog.snapshot_by_id(id) for id in snapshot_ids):
            if row is None or (row.locked_until or "") > now:
                continue
            ids = object_ids(self._catalog.snapshot_disks(row.id))
            if not attached.intersection(ids):
                going.append((row, ids))
        names = [f"{self._catalog.vm_name(row.vm_id)}@{row.name}" for row, _ids in going]
        all_ids = [id for _row, ids in going for id in ids]
        self._delete(intents.ExpireSnapshots([row.id for row, _ids in going], all_ids), all_ids, force=False)
        return names

    def _refuse_over_cap(self, vm: VMRow) -> None:
        cap = scheduled_cap(self._catalog)
        count = self._catalog.scheduled_count(vm.id)
        if count >= cap:
            raise Busy(
                f"VM {vm.name} has {count} snapshots of schedules, and the cap is {cap}: keep them for a shorter time, "
                "or raise it with blockdevctl schedule cap"
            )

    def list_snapshots(self, vm: str) -> list[Snapshot]:
        """Oldest first; without configuration texts and clients."""
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            return view_snapshots(self._catalog, row, self._catalog.snapshots(row.id))

    def page_of_snapshots(
        self, vm: str, after: Place, origin: str | None, schedule: str | None, count: int
    ) -> tuple[list[Snapshot], Place | None]:
        """As list_snapshots, those after a place, of an origin or a schedule only if it is named; then the next one's place."""
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            found = self._catalog.snapshots_page(row.id, after, origin, schedule, count + 1)
            last = found[count - 1] if len(found) > count else None
            shown = view_snapshots(self._catalog, row, found[:count])
        return shown, None if last is None else (last.lsn, last.id)

    def show_snapshot(self, vm: str, snapshot: str) -> Snapshot:
        """One snapshot with its configuration text and clients."""
        self._lookup.snapshot(self._lookup.vm(vm), snapshot)
        clients = self._lookup.clients()
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            return self._view_snapshot(row, self._lookup.snapshot(row, snapshot), clients)

    @change
    def delete_snapshot(self, vm: str, snapshot: str, force: bool = False) -> Snapshot:
        """Delete a snapshot; clones made of it are not touched.  Busy; forced, clients are cut off.

        Replication can do without any snapshot: an event says what one costs that it needs (holds.py).
        """
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        self._refuse_locked(row, found)
        was = self._view_snapshot(row, found)
        disks = self._catalog.snapshot_disks(found.id)
        intent = intents.DeleteSnapshot(vm, snapshot, found.id, object_ids(disks))
        needed_by = self._needed_by(row, was)
        self._delete(intent, intent.object_ids, force)
        if needed_by:
            self.events.note(
                *("warning", "snapshot", vm),
                f"{vm}@{snapshot} was deleted, the newest one of {needed_by}: what comes next is compared with an older one, "
                "or with all that is there",
            )
        return was

    def _needed_by(self, vm: VMRow, snapshot: Snapshot) -> str:
        """Who has it as the newest that both ends have."""
        received = self._catalog.receiving_vm(vm.id)
        if received is not None:
            is_newest = snapshot.lsn == self._catalog.newest_received_lsn(vm.id)
            return self._peer_name(received.peer_id) if is_newest else ""
        return ", ".join(f"path {path}" for path in snapshot.newest_on)
