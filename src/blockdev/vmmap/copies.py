"""Copies: a snapshot that was taken elsewhere comes into this pool, with its uuid, when all of its bytes are here.

Its bytes are written to vdisks that nobody was told of; one record of the pool makes the snapshot of them, and a VM
when it builds on no other snapshot.  An import, which is a copy from a stream, is dropped when it is not finished and
either process ends; a receipt, which is one that a peer sends, goes on (receipts.py).
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

from blockdev.engine.protocol import EngineObject
from blockdev.errors import AlreadyExists, BlockdevError, InvalidArgument, NotFound
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.journal import was_refused
from blockdev.vmmap.lookup import present
from blockdev.vmmap.model import Snapshot, Terms
from blockdev.vmmap.names import check_name, object_name
from blockdev.vmmap.operation import Label, Operations, change
from blockdev.vmmap.tags import Tag, decode_tag, encode_tag


class CopiedDisk(NamedTuple):
    """One disk of a snapshot that is to be copied."""

    name: str
    size_bytes: int
    is_based: bool  # it begins as the base's disk of that name; else empty


class SnapshotCopy(NamedTuple):
    """A snapshot as whoever has it tells of it; every field has been checked."""

    uuid: str
    name: str
    description: str
    created: str
    lsn: int  # in the pool that it was taken in
    terms: Terms  # of which origin, consistency, asked and frozen_ms count
    config: str
    disks: list[CopiedDisk]
    vm_uuid: str
    vm_name: str
    base_uuid: str | None  # of the snapshot that it builds on; None: on none
    base_name: str  # as it was called there, without its VM


class BegunCopy(NamedTuple):
    """A copy under way.  Write disk i to `exports[i]`, then finish or abort it."""

    copy: SnapshotCopy  # with the names that it will have here
    vm_id: int | None  # None: it makes a VM
    vdisk_ids: list[int]
    exports: list[str]


class CopyOperations(Operations):
    """The operations on copies."""

    @change
    def begin_copy(
        self, copy: SnapshotCopy, vm: str | None = None, name: str | None = None, expires: str | None = None
    ) -> BegunCopy:
        """Make vdisks for the bytes of a snapshot; nothing of it is seen before `finish_copy`.

        vm: the name of the VM that it makes, or which VM it is to be added to; name: of the snapshot; else as it was called.
        NotFound: no VM has its base; AlreadyExists: a name is taken, or the snapshot is here.
        """
        copy = copy._replace(name=name or copy.name, terms=copy.terms._replace(expires=expires))
        row = base = None
        if copy.base_uuid is None:
            copy = copy._replace(vm_name=vm or copy.vm_name, vm_uuid=self._free_uuid(copy.vm_uuid))
        else:
            row, base = self._find_base(copy, vm)
            self._refuse_received(row)
            copy = copy._replace(vm_name=row.name, vm_uuid=row.uuid)
        self._refuse_taken(copy, row)
        begun = self._begin(copy, row, base)
        self._journal.keep_temporaries(begun.vdisk_ids)
        return begun

    @change
    def finish_copy(self, begun: BegunCopy) -> Snapshot:
        """What was written becomes the snapshot, and the VM when it makes one, at once.

        NotFound: the engine was restarted meanwhile, or the VM is gone; AlreadyExists: a name was taken meanwhile; ReadOnly: a peer
        sends the VM by now.
        """
        copy = begun.copy
        if not self._journal.has_temporaries(begun.vdisk_ids):
            raise NotFound(f"the import of {copy.vm_name}@{copy.name} is no more: the engine was restarted; begin again")
        row = None if begun.vm_id is None else self._catalog.vm_by_id(begun.vm_id)
        if row is None and begun.vm_id is not None:
            raise NotFound(f"VM {copy.vm_name} was deleted while snapshot {copy.name} was being imported")
        if row is not None:
            self._refuse_received(row)  # it may have come to be, and a promotion take this for the newest that came
            copy = copy._replace(vm_name=row.name)  # it may have been renamed
        else:
            copy = copy._replace(vm_uuid=self._free_uuid(copy.vm_uuid))  # the same VM may have come meanwhile
        self._refuse_taken(copy, row)
        return self._finish(begun._replace(copy=copy), self._finishing(begun.vm_id, copy))

    def abort_copy(self, begun: BegunCopy) -> None:
        """Drop what was written; nothing is seen of it.  A copy that is no more is no error."""
        with self._journal.lock:
            self._journal.forget_temporaries(begun.vdisk_ids)
            try:
                self._journal.ensure_agreed()  # the end of it, whose answer was lost, may be under way in the engine still
                left = [id for id in begun.vdisk_ids if self._is_temporary(id)]  # an agreement may have finished it
            except BlockdevError:  # the next agreement drops it
                self._journal.agreed = False
            else:
                self._journal.drop(left)

    def _is_temporary(self, object_id: int) -> bool:
        try:
            tag = decode_tag(self._engine.get(object_id).tag)
        except NotFound:
            return False
        return tag is not None and tag.temporary

    def _free_uuid(self, vm_uuid: str) -> str:
        """The VM comes as itself, unless it is here already."""
        return str(uuid.uuid4()) if self._catalog.vm_of_uuid(vm_uuid) is not None else vm_uuid

    def _find_base(self, copy: SnapshotCopy, vm: str | None) -> tuple[VMRow, SnapshotRow]:
        """The VM that has the base, and the base in it."""
        of_vm = {row.vm_id: row for row in self._catalog.snapshots_of_uuid(copy.base_uuid or "")}
        rows = [row for row in map(self._catalog.vm_by_id, of_vm) if row is not None]
        if vm is not None:
            wanted = self._lookup.vm(vm)
            rows = [row for row in rows if row.id == wanted.id]
        if not rows:
            where = "no VM here has" if vm is None else f"VM {vm} does not have"
            raise NotFound(
                f"{copy.vm_name}@{copy.name} builds on snapshot {copy.vm_name}@{copy.base_name} (uuid {copy.base_uuid}), "
                f"which {where}: import that one first"
            )
        if len(rows) > 1:
            names = ", ".join(sorted(row.name for row in rows))
            raise InvalidArgument(f"VMs {names} all have the base {copy.base_name}: say with --vm which of them is meant")
        base = of_vm[rows[0].id]
        there = {one.name for one in self._catalog.snapshot_disks(base.id)}
        lacking = [disk.name for disk in copy.disks if disk.is_based and disk.name not in there]
        if lacking:
            raise NotFound(f"snapshot {rows[0].name}@{base.name} has no disk {lacking[0]}, which this builds on")
        return rows[0], base

    def _refuse_taken(self, copy: SnapshotCopy, row: VMRow | None) -> None:
        """AlreadyExists: a name, or the snapshot itself."""
        check_name("snapshot", copy.name)
        if row is None:
            check_name("VM", copy.vm_name)
            if self._catalog.vm(copy.vm_name) is not None:
                raise AlreadyExists(f"there is a VM {copy.vm_name} already: give the new one another name (an import with --vm, a copy with --as), or rename that one")
            return
        same = self._catalog.snapshot_of_uuid(row.id, copy.uuid)
        if same is not None:
            raise AlreadyExists(f"VM {row.name} has this snapshot already: it is {row.name}@{same.name}")
        if self._catalog.snapshot(row.id, copy.name) is not None:
            raise AlreadyExists(f"VM {row.name} has another snapshot {copy.name}: give this one another name with --name")

    def _begin(
        self, copy: SnapshotCopy, row: VMRow | None, base: SnapshotRow | None, receipt: list[Any] | None = None
    ) -> BegunCopy:
        """Make the vdisks.  row: the VM that it is added to; receipt: that the catalog is to know, NewReceipt."""
        needed = {disk.name for disk in copy.disks if disk.is_based}
        parts = [] if base is None else [one for one in self._catalog.snapshot_disks(base.id) if one.name in needed]
        sources = {one.name: present(one, f"disk {one.name} of snapshot {copy.base_name}") for one in parts}
        ending = f"~copy-{uuid.uuid4().hex[:12]}"  # receipts of earlier control planes may be there
        exports = [f"{object_name(copy.vm_name, disk.name)}{ending}" for disk in copy.disks]
        intent = intents.BeginCopy(None if row is None else row.id, copy.vm_name, copy.name, receipt)
        ids: list[int] = []

        def apply() -> list[EngineObject]:
            made = self._make_vdisks(copy, exports, sources)
            ids[:] = [thing.id for thing in made]
            return made

        self._journal.run(intent, apply)
        return BegunCopy(copy, intent.vm_id, ids, exports)

    def _finishing(self, vm_id: int | None, copy: SnapshotCopy, *ending: Any) -> intents.FinishCopy:
        """ending: the fields of FinishCopy that an import does not have."""
        return intents.FinishCopy(
            *(vm_id, copy.vm_uuid, copy.vm_name, copy.name, copy.uuid, copy.description, copy.created),
            *(list(copy.terms), copy.config, [disk.name for disk in copy.disks], self._journal.now(), *ending),
        )

    def _finish(self, begun: BegunCopy, intent: intents.FinishCopy) -> Snapshot:
        """Make the snapshot of the vdisks; these become the disks of the VM that it makes, or go."""
        makes_heads = intent.vm_id is None and intent.heads
        self._journal.run(intent, lambda: self._publish(begun, makes_heads))
        self._journal.forget_temporaries(begun.vdisk_ids)
        if not makes_heads:
            self._journal.drop(begun.vdisk_ids)
        made = self._lookup.vm(intent.vm)
        self.on_snapshot(made.id)
        return self._view_snapshot(made, self._lookup.snapshot(made, intent.name), {})

    def _make_vdisks(self, copy: SnapshotCopy, exports: list[str], sources: dict[str, int]) -> list[EngineObject]:
        """The engine step of a beginning: what is based as a clone of the base, of the right size, the rest empty."""
        tag = encode_tag(Tag(copy.vm_uuid, self._journal.now(), temporary=True))
        based = [(sources[disk.name], export, tag) for disk, export in zip(copy.disks, exports, strict=True) if disk.is_based]
        empty = [
            (disk.size_bytes, export, tag) for disk, export in zip(copy.disks, exports, strict=True) if not disk.is_based
        ]
        made: list[EngineObject] = []
        try:
            made += self._engine.clone(based) if based else []
            self._journal.at_step("begin_copy:cloned")
            made += self._engine.create(empty) if empty else []
            by_name = {thing.name: thing for thing in made}
            made = [by_name[export] for export in exports]
            for disk, thing in zip(copy.disks, made, strict=True):
                if thing.size_bytes != disk.size_bytes:
                    self._engine.resize(thing.id, disk.size_bytes, shrink=True)
        except BlockdevError as error:
            if was_refused(error) and made:
                self._journal.drop([thing.id for thing in made])
            raise
        return made

    def _publish(self, begun: BegunCopy, makes_heads: bool) -> list[EngineObject]:
        """The engine step of an end: snapshots of the vdisks; then all get their names, by one record."""
        copy = begun.copy
        temporary = encode_tag(Tag(copy.vm_uuid, self._journal.now(), temporary=True))
        ids = begun.vdisk_ids
        made = self._engine.snapshot(ids, [f"{export}-done" for export in begun.exports], [temporary] * len(ids))
        self._journal.at_step("finish_copy:taken")
        tag = encode_tag(Tag(copy.vm_uuid, copy.created, copy.terms.origin, copy.terms.consistency))
        labels: list[Label] = [
            (thing.id, object_name(copy.vm_name, disk.name, copy.name), tag)
            for disk, thing in zip(copy.disks, made, strict=True)
        ]
        heads: list[EngineObject] = []
        if makes_heads:
            tag = encode_tag(Tag(copy.vm_uuid, self._journal.now()))
            heads = [
                EngineObject(id, None, object_name(copy.vm_name, disk.name), tag, disk.size_bytes, None)
                for disk, id in zip(copy.disks, ids, strict=True)
            ]
        try:  # by force: whoever wrote the bytes may not have left quite yet
            self._engine.relabel([*labels, *((head.id, head.name, tag) for head in heads)], force=True)
        except BlockdevError as error:
            if was_refused(error):
                self._journal.drop([thing.id for thing in made])
            raise
        return [*made, *heads]
