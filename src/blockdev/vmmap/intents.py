"""What an operation that changes pool and catalog writes into the catalog before its engine step (docs/agreement.md).

The engine step of each operation is one record of the pool: that is its commit point.  An intent knows how to see in
the pool whether it was done (`evidence`), and what the catalog then has to say (`finish`); both are used alike by the
operation itself and by the agreement after a crash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from blockdev.engine.protocol import EngineObject
from blockdev.policies import AS_POOL, Compression, Dedup, DiskPolicy
from blockdev.vmmap.catalog import Catalog, IntentRow, RunRow
from blockdev.vmmap.catalog_replication import NewReceipt
from blockdev.vmmap.model import Terms
from blockdev.vmmap.names import object_name
from blockdev.vmmap.tags import Tag, decode_tag


class PoolView:
    """The objects of the pool at one moment."""

    def __init__(self, objects: Sequence[EngineObject]) -> None:
        self.by_id = {thing.id: thing for thing in objects}
        self.by_name = {thing.name: thing for thing in objects if thing.name is not None}
        self.tags: dict[int, Tag | None] = {thing.id: decode_tag(thing.tag) for thing in objects}

    def remove(self, ids: set[int]) -> None:
        """They have been deleted."""
        for id in ids:
            thing = self.by_id.pop(id)
            self.by_name.pop(thing.name or "", None)

    def named(self, names: Sequence[str], vm_uuid: str) -> list[EngineObject] | None:
        """The objects of these names, when all are there and of this VM."""
        found = [self.by_name.get(name) for name in names]
        things = [thing for thing in found if thing is not None]
        tags = [self.tags[thing.id] for thing in things]
        if len(things) < len(names) or any(tag is None or tag.vm_uuid != vm_uuid for tag in tags):
            return None
        return things

    def is_temporary(self, id: int) -> bool:
        """Whether it is there, and no user was told of it."""
        tag = self.tags.get(id)
        return id in self.by_id and tag is not None and tag.temporary

    def lacks(self, ids: Sequence[int]) -> bool:
        return not any(id in self.by_id for id in ids)


class Intent(ABC):
    """One operation under way.  Its fields are what JSON can hold; they are the body in the catalog."""

    kind: ClassVar[str]
    frees: ClassVar[bool] = False  # it frees space: on a full file system it may use the catalog's reserve

    @abstractmethod
    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        """What the engine step made ([]: it makes nothing), or None when it was not done."""

    @abstractmethod
    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        """The catalog step, inside a transaction."""

    def policy(self, catalog: Catalog) -> DiskPolicy:
        """Of the vdisks that the engine step made: their VM's."""
        return AS_POOL

    @abstractmethod
    def __str__(self) -> str:
        """The operation in a person's words."""

    def body(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


def _policy_of(catalog: Catalog, vm_id: int) -> DiskPolicy:
    vm = catalog.vm_by_id(vm_id)
    return AS_POOL if vm is None else vm.policy


class Deletion:
    """The half that deletions have alike: the engine step deletes objects, and makes nothing."""

    frees: ClassVar[bool] = True
    object_ids: list[int]

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return [] if view.lacks(self.object_ids) else None


@dataclass(frozen=True)
class CreateVM(Intent):
    kind = "create_vm"
    uuid: str
    name: str
    description: str
    config: str
    created: str
    disks: list[list[Any]]  # [name, size in bytes]
    compression: Compression | None = None  # version 1 of the catalog had neither
    dedup: Dedup | None = None

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return DiskPolicy(self.compression, self.dedup)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return view.named([object_name(self.name, disk) for disk, _ in self.disks], self.uuid) or None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        vm_id = catalog.insert_vm(
            self.uuid,
            self.name,
            self.created,
            description=self.description,
            config=self.config,
            policy=self.policy(catalog),
        )
        for (disk, size_bytes), thing in zip(self.disks, made, strict=True):
            catalog.put_disk(vm_id, disk, thing.id, size_bytes, self.created)

    def __str__(self) -> str:
        return f"create VM {self.name}"


@dataclass(frozen=True)
class RenameVM(Intent):
    kind = "rename_vm"
    vm_id: int
    uuid: str
    name: str
    new_name: str
    object_id: int  # one of the VM's objects: all are renamed by one record

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        thing = view.by_id.get(self.object_id)
        renamed = thing is not None and (thing.name or "").startswith(f"{self.new_name}/")
        return [] if renamed else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.rename_vm(self.vm_id, self.new_name)

    def __str__(self) -> str:
        return f"rename VM {self.name} to {self.new_name}"


@dataclass(frozen=True)
class DeleteVM(Deletion, Intent):
    kind = "delete_vm"
    vm_id: int
    name: str
    object_ids: list[int]

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.delete_vm(self.vm_id)

    def __str__(self) -> str:
        return f"delete VM {self.name}"


@dataclass(frozen=True)
class AddDisk(Intent):
    kind = "add_disk"
    vm_id: int
    uuid: str
    vm: str
    disk: str
    size_bytes: int
    created: str

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return _policy_of(catalog, self.vm_id)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return view.named([object_name(self.vm, self.disk)], self.uuid)

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.put_disk(self.vm_id, self.disk, made[0].id, self.size_bytes, self.created)

    def __str__(self) -> str:
        return f"add disk {self.vm}/{self.disk}"


@dataclass(frozen=True)
class RemoveDisk(Deletion, Intent):
    kind = "remove_disk"
    vm: str
    disk: str
    disk_id: int
    object_ids: list[int]  # its vdisk, and that of an import into it
    import_ids: list[int]

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.delete_disk(self.disk_id)
        for import_id in self.import_ids:
            catalog.delete_import(import_id)

    def __str__(self) -> str:
        return f"remove disk {self.vm}/{self.disk}"


@dataclass(frozen=True)
class ResizeDisk(Intent):
    kind = "resize_disk"
    vm: str
    disk: str
    disk_id: int
    object_id: int
    size_bytes: int

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        thing = view.by_id.get(self.object_id)
        return [] if thing is not None and thing.size_bytes == self.size_bytes else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.set_disk_size(self.disk_id, self.size_bytes)

    def __str__(self) -> str:
        return f"resize disk {self.vm}/{self.disk} to {self.size_bytes} bytes"


@dataclass(frozen=True)
class CreateSnapshot(Intent):
    kind = "create_snapshot"
    vm_id: int
    uuid: str
    vm: str
    name: str
    description: str
    created: str
    terms: list[Any]  # model.Terms
    disks: list[str]

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return view.named([object_name(self.vm, disk, self.name) for disk in self.disks], self.uuid)

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        terms = Terms(*self.terms)
        if terms.schedule is not None and terms.due is not None:
            catalog.put_schedule_runs([RunRow(self.vm_id, terms.schedule, terms.due, 0, None)])
        snapshot_id = catalog.insert_snapshot(
            self.vm_id,
            self.name,
            self.created,
            made[0].lsn or 0,
            description=self.description,
            terms=terms,
        )
        for disk, thing in zip(self.disks, made, strict=True):
            catalog.put_snapshot_disk(snapshot_id, disk, thing.id, thing.size_bytes)

    def __str__(self) -> str:
        return f"create snapshot {self.vm}@{self.name}"

    @classmethod
    def of_version_2(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of one that an earlier build began: its catalog knew the origin alone."""
        fields = dict(body)
        fields["terms"] = list(Terms(origin=fields.pop("origin")))
        return fields


@dataclass(frozen=True)
class ExpireSnapshots(Deletion, Intent):
    kind = "expire_snapshots"
    snapshot_ids: list[int]
    object_ids: list[int]

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        for snapshot_id in self.snapshot_ids:
            catalog.delete_snapshot(snapshot_id)

    def __str__(self) -> str:
        return f"delete {len(self.snapshot_ids)} snapshots that expired"


@dataclass(frozen=True)
class DeleteSnapshot(Deletion, Intent):
    kind = "delete_snapshot"
    vm: str
    name: str
    snapshot_id: int
    object_ids: list[int]

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.delete_snapshot(self.snapshot_id)

    def __str__(self) -> str:
        return f"delete snapshot {self.vm}@{self.name}"


@dataclass(frozen=True)
class Clone(Intent):
    kind = "clone"
    source: str  # VM@SNAPSHOT
    snapshot_id: int
    disks: list[str]
    created: str
    vms: list[list[str]]  # [uuid, name]
    compression: Compression | None = None  # of the source's VM; version 1 of the catalog had neither
    dedup: Dedup | None = None
    description: str = ""
    made_for: int | None = None  # id of the peer that had it made

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return DiskPolicy(self.compression, self.dedup)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        made: list[EngineObject] = []
        for uuid, name in self.vms:
            things = view.named([object_name(name, disk) for disk in self.disks], uuid)
            if things is None:
                return None
            made += things
        return made

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        things = iter(made)
        for uuid, name in self.vms:
            vm_id = catalog.insert_vm(
                *(uuid, name, self.created),
                description=self.description,
                cloned_from=self.source,
                policy=self.policy(catalog),
            )
            if self.made_for is not None:
                catalog.put_made_vm(vm_id, self.made_for)
            catalog.use_config_of_snapshot(vm_id, self.snapshot_id)
            for disk in self.disks:
                thing = next(things)
                catalog.put_disk(vm_id, disk, thing.id, thing.size_bytes, self.created)

    def __str__(self) -> str:
        first, last = self.vms[0][1], self.vms[-1][1]
        return f"clone {self.source} to {first}" + (f" ... {last}" if len(self.vms) > 1 else "")


@dataclass(frozen=True)
class Restore(Intent):
    kind = "restore"
    vm_id: int
    uuid: str
    vm: str
    snapshot: str
    snapshot_id: int
    whole: bool  # all disks and the configuration, not one disk alone
    disks: list[list[Any]]  # [disk, id of the vdisk that it replaces or None]
    created: str
    promotes: bool = False  # the VM was a peer's until now

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return _policy_of(catalog, self.vm_id)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        things = view.named([object_name(self.vm, disk) for disk, _ in self.disks], self.uuid)
        if things is None:
            return None
        new = all(thing.id != before for thing, (_, before) in zip(things, self.disks, strict=True))
        return things if new else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        for (disk, _), thing in zip(self.disks, made, strict=True):
            catalog.put_disk(self.vm_id, disk, thing.id, thing.size_bytes, self.created)
        if self.whole:
            catalog.use_config_of_snapshot(self.vm_id, self.snapshot_id)
        if self.promotes:
            catalog.set_promoted(self.vm_id, self.created)
            for receipt in catalog.receipts_into(self.vm_id):
                catalog.delete_receipt(receipt.id)

    def __str__(self) -> str:
        if self.promotes:
            return f"promote {self.vm} to {self.vm}@{self.snapshot}"
        what = self.vm if self.whole else f"{self.vm}/{self.disks[0][0]}"
        return f"restore {what} to {self.vm}@{self.snapshot}"


@dataclass(frozen=True)
class RestoreBeside(Intent):
    """One disk of a snapshot as a new disk of the same VM."""

    kind = "restore_beside"
    vm_id: int
    uuid: str
    vm: str
    snapshot: str
    disk: str
    new_disk: str
    created: str

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return _policy_of(catalog, self.vm_id)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return view.named([object_name(self.vm, self.new_disk)], self.uuid)

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        [thing] = made
        catalog.put_disk(self.vm_id, self.new_disk, thing.id, thing.size_bytes, self.created)

    def __str__(self) -> str:
        return f"restore {self.vm}/{self.disk}@{self.snapshot} as {self.vm}/{self.new_disk}"


@dataclass(frozen=True)
class BeginImport(Intent):
    kind = "begin_import"
    vm_id: int
    vm: str
    disk: str
    size_bytes: int
    creates: bool
    started: str

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return _policy_of(catalog, self.vm_id)  # from the first byte of the image

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return None  # whoever asked was not told: the vdisk goes, being marked as temporary

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.insert_import(self.vm_id, self.disk, made[0].id, self.size_bytes, self.creates, self.started)

    def __str__(self) -> str:
        return f"begin import of {self.vm}/{self.disk}"


@dataclass(frozen=True)
class FinishImport(Intent):
    kind = "finish_import"
    import_id: int
    vm_id: int
    vm: str
    disk: str
    object_id: int
    size_bytes: int
    created: str

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        thing = view.by_name.get(object_name(self.vm, self.disk))
        return [] if thing is not None and thing.id == self.object_id else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.put_disk(self.vm_id, self.disk, self.object_id, self.size_bytes, self.created)
        catalog.delete_import(self.import_id)

    def __str__(self) -> str:
        return f"finish import of {self.vm}/{self.disk}"


@dataclass(frozen=True)
class AbortImport(Intent):
    kind = "abort_import"
    frees = True
    import_id: int
    vm: str
    disk: str
    object_id: int

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return [] if view.lacks([self.object_id]) else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.delete_import(self.import_id)

    def __str__(self) -> str:
        return f"abort import of {self.vm}/{self.disk}"


@dataclass(frozen=True)
class BeginCopy(Intent):
    kind = "begin_copy"
    vm_id: int | None  # None: it makes a VM
    vm: str
    name: str
    receipt: list[Any] | None = None  # of a snapshot that a peer sends: NewReceipt

    def policy(self, catalog: Catalog) -> DiskPolicy:
        return AS_POOL if self.vm_id is None else _policy_of(catalog, self.vm_id)

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        return None  # whoever asked was not told: the vdisks go, being marked as temporary

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        if self.receipt is not None:  # of others the catalog knows nothing before they are whole
            catalog.insert_receipt(NewReceipt(*self.receipt), self.vm_id, [thing.id for thing in made])

    def __str__(self) -> str:
        return f"begin {_copying(self.receipt)} of snapshot {self.vm}@{self.name}"


def _copying(receipt: object) -> str:
    return "import" if receipt is None else "receipt"


@dataclass(frozen=True)
class FinishCopy(Intent):
    kind = "finish_copy"
    vm_id: int | None  # None: it makes a VM
    uuid: str  # of the VM
    vm: str
    name: str
    snapshot_uuid: str
    description: str
    created: str
    terms: list[Any]  # model.Terms
    config: str
    disks: list[str]
    imported: str  # when
    heads: bool = True  # of the VM that it makes; else it has snapshots alone
    receipt_ids: list[int] | None = None  # that which ends, and others of the same VM
    peer: list[Any] | None = None  # [peer id, rpo_seconds] of the VM that this makes or keeps a received one
    digests: list[str] | None = None  # of the disks, in hexadecimal
    made_for: int | None = None  # id of the peer that had it made, as a VM of its own

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        names = [object_name(self.vm, disk, self.name) for disk in self.disks]
        if self.vm_id is None and self.heads:
            names += [object_name(self.vm, disk) for disk in self.disks]
        return view.named(names, self.uuid)

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        vm_id, taken, heads = self.vm_id, made[: len(self.disks)], made[len(self.disks) :]
        if vm_id is None:
            vm_id = catalog.insert_vm(self.uuid, self.vm, self.imported, config=self.config)
            for disk, thing in zip(self.disks if self.heads else [], heads, strict=True):
                catalog.put_disk(vm_id, disk, thing.id, thing.size_bytes, self.imported)
        snapshot_id = catalog.insert_snapshot(
            *(vm_id, self.name, self.created, made[0].lsn or 0),
            description=self.description,
            terms=Terms(*self.terms),
            uuid=self.snapshot_uuid,
            config=self.config,
        )
        for disk, thing, digest in zip(self.disks, taken, self.digests or [""] * len(taken), strict=True):
            catalog.put_snapshot_disk(snapshot_id, disk, thing.id, thing.size_bytes)
            if digest:
                catalog.set_digest(thing.id, bytes.fromhex(digest))
        if self.peer is not None:
            peer_id, rpo_seconds = self.peer
            catalog.use_config_of_snapshot(vm_id, snapshot_id)
            catalog.put_received_vm(vm_id, peer_id, rpo_seconds, self.imported)
        if self.made_for is not None:
            catalog.put_made_vm(vm_id, self.made_for)
        for receipt_id in self.receipt_ids or ():
            catalog.delete_receipt(receipt_id)

    def __str__(self) -> str:
        return f"finish {_copying(self.receipt_ids)} of snapshot {self.vm}@{self.name}"


@dataclass(frozen=True)
class DropReceipts(Deletion, Intent):
    kind = "drop_receipts"
    receipt_ids: list[int]
    object_ids: list[int]

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        for receipt_id in self.receipt_ids:
            catalog.delete_receipt(receipt_id)

    def __str__(self) -> str:
        return f"drop {len(self.receipt_ids)} half-received snapshots"


@dataclass(frozen=True)
class DemoteVM(Deletion, Intent):
    """The VM's disks go, its snapshots stay; from here on a peer sends more."""

    kind = "demote_vm"
    vm_id: int
    vm: str
    object_ids: list[int]  # of its disks
    peer_id: int
    demoted: str

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        for disk in catalog.disks(self.vm_id):
            catalog.delete_disk(disk.id)
        peer, rpo_seconds = catalog.peer_by_id(self.peer_id), None
        for protection in catalog.protections(self.vm_id):
            path = catalog.path_by_id(protection.path_id)
            if peer is not None and path is not None and path.key == peer.key:
                rpo_seconds = protection.rpo_seconds  # until the peer says another one
            catalog.delete_protection(self.vm_id, protection.path_id)
        catalog.delete_received_vm(self.vm_id)
        catalog.put_received_vm(self.vm_id, self.peer_id, rpo_seconds, self.demoted)

    def __str__(self) -> str:
        return f"make {self.vm} a received VM"


@dataclass(frozen=True)
class SetPolicy(Intent):
    kind = "set_policy"
    vm_id: int
    name: str
    object_ids: list[int]  # its vdisks, and those of imports under way
    compression: Compression | None
    dedup: Dedup | None

    def evidence(self, view: PoolView) -> list[EngineObject] | None:
        policies = {view.by_id[id].policy for id in self.object_ids if id in view.by_id}
        return [] if policies == {(self.compression, self.dedup)} else None

    def finish(self, catalog: Catalog, made: list[EngineObject]) -> None:
        catalog.set_policy(self.vm_id, DiskPolicy(self.compression, self.dedup))

    def __str__(self) -> str:
        return f"set the policy of VM {self.name}"


KINDS: dict[str, type[Intent]] = {kind.kind: kind for kind in Intent.__subclasses__()}


def load_intent(row: IntentRow) -> Intent:
    """The intent that a row of the catalog is."""
    old = row.kind == CreateSnapshot.kind and "origin" in row.body
    return KINDS[row.kind](**(CreateSnapshot.of_version_2(row.body) if old else row.body))
