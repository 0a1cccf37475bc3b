"""Clones of VMs, and restores: what makes disks out of a snapshot's maps."""

from __future__ import annotations

import uuid

from blockdev.engine.protocol import EngineObject
from blockdev.errors import BlockdevError, InvalidArgument
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.journal import was_refused
from blockdev.vmmap.lookup import object_ids, present, refuse_importing
from blockdev.vmmap.model import (
    VM,
    Restored,
    Terms,
)
from blockdev.vmmap.names import (
    check_name,
    object_name,
)
from blockdev.vmmap.operation import Operations, Replacement, change
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import (
    view_vm,
)

CLONES_MAX = 1000  # in one operation, which is one record of the pool


class CloneOperations(Operations):
    """The operations that make disks of snapshots."""

    @change
    def clone(self, vm: str, snapshot: str | None, new_name: str) -> VM:
        """A new VM from a snapshot's disks and configuration; without one, a snapshot is taken first."""
        return self._clone(vm, snapshot, [new_name])[0]

    @change
    def clone_many(self, vm: str, snapshot: str | None, count: int, prefix: str) -> list[VM]:
        """VMs `PREFIX-1` to `PREFIX-COUNT`, all or none."""
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= CLONES_MAX:
            raise InvalidArgument(f"{count!r} clones cannot be made at once: take 1 to {CLONES_MAX}")
        check_name("VM", f"{prefix}-{count}")
        return self._clone(vm, snapshot, [f"{prefix}-{number}" for number in range(1, count + 1)])

    def _clone(self, vm: str, snapshot: str | None, names: list[str]) -> list[VM]:
        row = self._lookup.vm(vm)
        for name in names:
            self._lookup.check_new_vm(name)
        if snapshot is None:
            name = self._time_name(row, "clone-")
            taken = self._take_snapshot(row, name, f"for clone {names[0]}", Terms("clone"))
        else:
            taken = self._lookup.snapshot(row, snapshot)
        sources = [
            (disk.name, present(disk, object_name(vm, disk.name, taken.name)))
            for disk in self._catalog.snapshot_disks(taken.id)
        ]
        now = self._journal.now()
        vms = [[str(uuid.uuid4()), name] for name in names]
        specs = [
            (object_id, object_name(name, disk), encode_tag(Tag(vm_uuid, now)))
            for vm_uuid, name in vms
            for disk, object_id in sources
        ]
        disks = [disk for disk, _ in sources]
        intent = intents.Clone(f"{vm}@{taken.name}", taken.id, disks, now, vms, *row.policy)
        self._journal.run(intent, lambda: self._engine.clone(specs))
        return [view_vm(self._catalog, self._lookup.vm(name), {}) for name in names]

    @change
    def restore(self, vm: str, snapshot: str, disk: str | None = None, force: bool = False) -> Restored:
        """Put the VM's disks and configuration, or one disk alone, back to a snapshot, all or none.

        The state before is kept in a snapshot of origin `restore`.  Disks that the snapshot lacks stay as they
        are; disks removed since come back.  Busy; forced, attached clients are cut off (errors, not other data
        under a running guest).
        """
        row = self._lookup.vm(vm)
        wanted = self._lookup.snapshot(row, snapshot)
        sources = {
            one.name: present(one, object_name(vm, one.name, snapshot))
            for one in self._lookup.snapshot_disks(row, snapshot, disk)
        }
        refuse_importing(row, [one for one in self._catalog.imports(row.id) if one.disk in sources])
        replaced = {one.name: one for one in self._catalog.disks(row.id) if one.name in sources}
        if not force:
            self._lookup.refuse_attached(object_ids(list(replaced.values())))
        safety = self._take_safety_snapshot(row, snapshot)
        now = self._journal.now()
        places = [
            (name, replaced[name].object_id, replaced[name].created)
            if name in replaced
            else (name, None, now)
            for name in sources
        ]
        intent = intents.Restore(
            *(row.id, row.uuid, vm, snapshot, wanted.id, disk is None),
            [[name, old_id] for name, old_id, _ in places],
            now,
        )
        self._journal.run(intent, lambda: self._put_back(row, list(sources.values()), places, force))
        self._journal.drop([old_id for _, old_id, _ in places if old_id is not None])
        shown = view_vm(self._catalog, self._lookup.vm(vm), self._lookup.clients())
        return Restored(shown, snapshot, list(sources), safety.name if safety else None)

    def _put_back(
        self, vm: VMRow, sources: list[int], places: list[tuple[str, int | None, str]], force: bool
    ) -> list[EngineObject]:
        """The engine step of a restore: clones beside the disks, then in their places, by one record."""
        temporary = encode_tag(Tag(vm.uuid, self._journal.now(), temporary=True))
        names = [f"{object_name(vm.name, name)}~new" for name, _, _ in places]
        made = self._engine.clone([(id, name, temporary) for id, name in zip(sources, names, strict=True)])
        self._journal.at_step("restore:cloned")
        replacements = [
            Replacement(name, thing.id, old_id, created)
            for (name, old_id, created), thing in zip(places, made, strict=True)
        ]
        try:
            self._engine.relabel(self._replacing_labels(vm, replacements), force)
        except BlockdevError as error:
            if was_refused(error):
                self._journal.drop([thing.id for thing in made])
            raise
        return made

    def _take_safety_snapshot(self, vm: VMRow, snapshot: str) -> SnapshotRow | None:
        """What a restore can be taken back with; None when there is nothing left to lose."""
        if not object_ids(self._catalog.disks(vm.id)):
            return None
        name = self._time_name(vm, "restore-")
        return self._take_snapshot(vm, name, f"before restore of {snapshot}", Terms("restore"), skip_missing=True)

