"""Receipts: snapshots that a peer sends, as far as they are here.  They last across restarts of either process.

A receipt is a copy (copies.py) that the catalog knows: its vdisks are temporary, so that nobody sees them, and the rows
of `receipt_disk` keep the agreement from dropping them.  What is before `next_block` of a disk is here and durable;
what came after it may be here or not, and is offered again.  One that the pool lacks a vdisk of is dropped as a whole.

Of a VM that is protected the snapshots alone are kept, until it is promoted (received.py).  Of one that is protected
there is one receipt at a time, and that of an older snapshot until it ends: its blocks are found by their fingerprints.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from blockdev.errors import AlreadyExists, NotAllowed, NotFound, Unavailable
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import SnapshotDiskRow, SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import NewReceipt, Purpose, ReceiptRow
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.copies import BegunCopy, CopiedDisk, CopyOperations, SnapshotCopy
from blockdev.vmmap.digests import DigestOperations
from blockdev.vmmap.lookup import looks_received
from blockdev.vmmap.model import Snapshot, Terms
from blockdev.vmmap.names import check_name, free_name
from blockdev.vmmap.operation import change

RECEIPTS_OF_PEER_MAX = 256
VMS_OF_PEER_MAX = 10_000  # received, copied and cloned


class ReceiptDisk(NamedTuple):
    """One disk of a snapshot that is being received."""

    name: str
    object_id: int  # the vdisk that it is written to
    size_bytes: int
    next_block: int  # what is before it is here, and durable
    is_based: bool  # it began as the base's disk of that name; else empty


class Receipt(NamedTuple):
    """A snapshot that is being received."""

    id: int
    base_uuid: str | None  # of the snapshot that it was begun on; None: on none
    vm_name: str  # that it has or will have
    data_bytes: int  # received so far
    disks: list[ReceiptDisk]  # as the sender counts them
    instance: bytes  # of the engine process that it goes on in: what another one has of it may end at `next_block`


class ReceiptOperations(CopyOperations, DigestOperations):
    """The operations on receipts."""

    @change
    def begin_receipt(
        self, peer_id: int, purpose: Purpose, copy: SnapshotCopy, ancestors: Sequence[str]
    ) -> Receipt | None:
        """Go on with a snapshot that a peer sends, or begin it; None: it is here already.

        copy: its base, and which disks are based, are found here; vm_uuid as the peer has it; vm_name: wanted.
        ancestors: uuids of older snapshots that the peer can compare with, the newest first.
        AlreadyExists: the VM has disks here, or the name of a copy is taken; NotAllowed: it is not this peer's, or promoted;
        NotFound: the peer was removed.
        """
        instance: bytes = self._engine.hello()["instance"]
        self._journal.ensure_agreed_with(instance)  # so no receipt lacks a vdisk, as far as is known: to look at 4,096 took half a second
        if self._catalog.peer_by_id(peer_id) is None:
            raise NotFound("you are no peer of this home any more")
        check_name("VM", copy.vm_name)
        check_name("snapshot", copy.name)
        row = self._receiving_vm(peer_id, purpose, copy)
        if row is not None and self._catalog.snapshot_of_uuid(row.id, copy.uuid) is not None:
            return None
        known = self._catalog.receipts_of(*_key(peer_id, purpose, copy))
        same = [one for one in known if one.snapshot_uuid == copy.uuid]
        for receipt in same:
            if self._goes_on(receipt, copy, ancestors):
                return self._view_receipt(receipt, instance)
        older = [one for one in known if one.snapshot_uuid != copy.uuid]
        self._drop_receipts([*same, *older[:-1]])
        self._begin_receipt(peer_id, purpose, copy, ancestors, row)
        [begun] = [one for one in self._catalog.receipts_of(*_key(peer_id, purpose, copy)) if one.snapshot_uuid == copy.uuid]
        return self._view_receipt(begun, instance)

    def doubt_receipt(self, receipt_id: int) -> None:
        """The pool lacks a vdisk that it is written to: unless it was dropped meanwhile, the next operation does that."""
        with self._journal.lock:
            if self._catalog.receipt(receipt_id) is not None:
                self._journal.agreed = False

    def make_receipt_durable(self, receipt: Receipt) -> None:
        """What was written before.  It waits for no operation.

        Unavailable: the engine was restarted, so that what was written may be lost: begin again.
        """
        self._engine.flush()
        if self._engine.hello()["instance"] != receipt.instance:
            raise Unavailable("the engine was restarted while a snapshot was being received: it goes on from where it was saved")

    def save_receipt(self, receipt: Receipt, next_blocks: Sequence[int], data_bytes: int) -> None:
        """Note that what is before `next_blocks` of the disks is durable, as `make_receipt_durable` has made it.

        NotFound: it was dropped.
        """
        with self._catalog.transaction():
            self._receipt(receipt.id)
            self._catalog.save_receipt(receipt.id, next_blocks, data_bytes, self._journal.now())

    def receipt_digests(self, receipt: Receipt) -> list[bytes]:
        """The content digest of each disk as it is here now, durable.  Cost: a diff to its base, under no lock.

        Raises as `make_receipt_durable` and `save_receipt`.
        """
        self.make_receipt_durable(receipt)
        with self._catalog.transaction():
            row = self._receipt(receipt.id)
            base = {one.name: one for one in self._base_disks(row, receipt.base_uuid)}
        return [self._digest_from(base.get(disk.name) if disk.is_based else None, disk.object_id) for disk in receipt.disks]

    @change
    def finish_receipt(
        self,
        receipt: Receipt,
        digests: Sequence[bytes],
        keep_seconds: float | None = None,
        rpo_seconds: int | None = None,
    ) -> Snapshot:
        """What was written becomes the snapshot, at once, of the VM that the peer protects, or with a VM of its own.

        digests: those of `receipt_digests`, after which nothing was written.  keep_seconds: it expires so long from now; None: never.
        NotFound: it was dropped; AlreadyExists, NotAllowed: as `begin_receipt`, if that has come to be meanwhile.
        """
        begun = self._receipt(receipt.id)
        same = self._catalog.receipts_of(begun.peer_id, begun.purpose, begun.vm_uuid, begun.name)
        copy, vdisk_ids = _load_copy(begun.body), self._vdisk_ids([begun])
        expires = None if keep_seconds is None else to_text(self._clock() + keep_seconds)
        copy = copy._replace(terms=copy.terms._replace(expires=expires))
        row = peer = made_for = None
        if begun.purpose == "copy":
            self._refuse_taken(copy, None)
            made_for = begun.peer_id
        else:
            row = self._received_vm(begun.peer_id, begun.vm_uuid)
            copy = self._named(copy, row)
            peer = [begun.peer_id, rpo_seconds]
        vm_id = None if row is None else row.id
        others = self._vdisk_ids([one for one in same if one.id != begun.id])
        ending = peer is None, [one.id for one in same], peer, [digest.hex() for digest in digests], made_for
        made = self._finish(
            BegunCopy(copy, vm_id, vdisk_ids, self._export_names(vdisk_ids)), self._finishing(vm_id, copy, *ending)
        )
        if others:
            self._journal.drop(others)
        return made

    @change
    def drop_receipt(self, receipt_id: int) -> None:
        """Nothing is left of it.  One that is no more is no error."""
        receipt = self._catalog.receipt(receipt_id)
        self._drop_receipts([] if receipt is None else [receipt])

    @change
    def drop_stale_receipts(self, before: str) -> list[str]:
        """Those that were last gone on with before this time; VM@SNAPSHOT of each."""
        stale = [one for one in self._catalog.receipts() if one.touched < before]
        self._drop_receipts(stale)
        return [f"{copy.vm_name}@{copy.name}" for copy in (_load_copy(one.body) for one in stale)]

    @change
    def forget_peer(self, peer_id: int) -> None:
        """A peer is none any more: all that it has begun goes, and what it has sent are VMs like others.

        Nothing is begun in between: what the journal goes on with never names a peer that there is not.
        """
        self._drop_receipts(self._catalog.receipts(peer_id))
        with self._catalog.transaction():
            self._catalog.delete_peer(peer_id)

    def _begin_receipt(
        self, peer_id: int, purpose: Purpose, copy: SnapshotCopy, ancestors: Sequence[str], row: VMRow | None
    ) -> None:
        self._refuse_too_many(peer_id, row is None)
        base = self._newest_base(peer_id, purpose, row, ancestors)
        there = {one.name for one in self._catalog.snapshot_disks(base.id)} if base is not None else set()
        sent = copy
        copy = copy._replace(
            base_uuid=None if base is None else base.uuid,
            base_name="" if base is None else base.name,
            disks=[CopiedDisk(disk.name, disk.size_bytes, disk.name in there) for disk in copy.disks],
            terms=copy.terms._replace(origin="replication", expires=None),
        )
        if purpose == "copy":
            copy = copy._replace(vm_uuid=str(uuid.uuid4()))
            self._refuse_taken(copy, None)
        else:
            copy = self._named(copy, row)
        _, _, vm_uuid, name = _key(peer_id, purpose, sent)
        new = NewReceipt(peer_id, purpose, vm_uuid, copy.uuid, name, _dump_copy(copy), self._journal.now())
        self._begin(copy, row, base, list(new))

    def _refuse_too_many(self, peer_id: int, makes_vm: bool) -> None:
        """NotAllowed: rows and empty disks take room, too, that no limit of space counts."""
        if len(self._catalog.receipts(peer_id)) >= RECEIPTS_OF_PEER_MAX:
            raise NotAllowed(f"{RECEIPTS_OF_PEER_MAX} snapshots of this peer are half-received there: end some before another is begun")
        if makes_vm:
            self.refuse_too_many_vms(peer_id)

    def refuse_too_many_vms(self, peer_id: int) -> None:
        """NotAllowed: a peer has so many VMs here that it may not have another."""
        count = self._catalog.vm_count_of_peer(peer_id)
        if count >= VMS_OF_PEER_MAX:
            raise NotAllowed(f"this peer has {count} VMs there: delete some there before another comes")

    def _receiving_vm(self, peer_id: int, purpose: Purpose, copy: SnapshotCopy) -> VMRow | None:
        """Where the snapshot is going to be, or is: the VM that is protected, or that of a copy which was finished."""
        if purpose == "protect":
            return self._received_vm(peer_id, copy.vm_uuid)
        row = self._catalog.vm(copy.vm_name)
        is_copy = row is not None and self._catalog.received_vm(row.id) is None and self._catalog.disks(row.id)
        return row if is_copy else None

    def _received_vm(self, peer_id: int, vm_uuid: str) -> VMRow | None:
        """The VM that the peer protects; None: it is not here yet.  AlreadyExists, NotAllowed."""
        row = self._catalog.vm_of_uuid(vm_uuid)
        if row is None:
            return None
        received = self._catalog.received_vm(row.id)
        if received is None:
            if not looks_received(self._catalog, row):  # a catalog that was lost has lost whose it is
                raise AlreadyExists(
                    f"VM {row.name} (uuid {vm_uuid}) is there already, with disks of its own: "
                    f"blockdevctl replicate receive {row.name} there makes it one that is received"
                )
        elif received.peer_id != peer_id:
            raise NotAllowed(f"VM {row.name} is received from another peer there")
        elif received.promoted is not None:
            raise NotAllowed(
                f"VM {row.name} was promoted there at {received.promoted}: it is that end's to change; "
                "blockdevctl replicate reverse lets it be sent back from there"
            )
        return row

    def _newest_base(
        self, peer_id: int, purpose: Purpose, row: VMRow | None, ancestors: Sequence[str]
    ) -> SnapshotRow | None:
        """The first of `ancestors` that is here whole; for a copy in any VM that the peer sent, as nobody else's may be told."""
        if purpose == "protect" and row is None:
            return None
        here = self._catalog.snapshots_of_uuids(ancestors)
        for ancestor in ancestors:
            for one in here.get(ancestor, ()):
                is_of = self._is_sent_by(peer_id, one) if row is None else one.vm_id == row.id
                disks = self._catalog.snapshot_disks(one.id) if is_of else []
                if disks and all(disk.object_id is not None for disk in disks):
                    return one
        return None

    def _is_sent_by(self, peer_id: int, snapshot: SnapshotRow) -> bool:
        received = self._catalog.received_vm(snapshot.vm_id)
        return received is not None and received.peer_id == peer_id

    def _named(self, copy: SnapshotCopy, row: VMRow | None) -> SnapshotCopy:
        """With the names that it will have: a received VM's may be taken here, where nobody chose them."""
        if row is None:
            return copy._replace(vm_name=free_name(copy.vm_name, lambda name: self._catalog.vm(name) is not None))
        name = free_name(copy.name, lambda name: self._catalog.snapshot(row.id, name) is not None)
        return copy._replace(vm_name=row.name, vm_uuid=row.uuid, name=name)

    def _goes_on(self, receipt: ReceiptRow, copy: SnapshotCopy, ancestors: Sequence[str]) -> bool:
        """Whether what is here is of use: the same disks, on a base that the peer still has."""
        begun = _load_copy(receipt.body)
        if begun.base_uuid is not None and begun.base_uuid not in ancestors:
            return False
        return [disk[:2] for disk in begun.disks] == [disk[:2] for disk in copy.disks]

    def _receipt(self, receipt_id: int) -> ReceiptRow:
        found = self._catalog.receipt(receipt_id)
        if found is None:
            raise NotFound("what was received of this snapshot is no more: begin again")
        return found

    def _vdisk_ids(self, receipts: Sequence[ReceiptRow]) -> list[int]:
        return [row.object_id for receipt in receipts for row in self._catalog.receipt_disks(receipt.id)]

    def _export_names(self, vdisk_ids: list[int]) -> list[str]:
        return [self._engine.get(id).name or f"object {id}" for id in vdisk_ids]

    def _base_disks(self, receipt: ReceiptRow, base_uuid: str | None) -> list[SnapshotDiskRow]:
        """As far as they are here still."""
        rows = self._catalog.snapshots_of_uuid(base_uuid) if base_uuid is not None else []
        rows = [row for row in rows if receipt.vm_id in (None, row.vm_id)]
        return self._catalog.snapshot_disks(rows[0].id) if rows else []

    def _drop_receipts(self, receipts: Sequence[ReceiptRow]) -> None:
        """All by one record."""
        if not receipts:
            return
        ids = self._vdisk_ids(receipts)
        self._delete(intents.DropReceipts([receipt.id for receipt in receipts], ids), ids, force=True)

    def _view_receipt(self, receipt: ReceiptRow, instance: bytes) -> Receipt:
        copy = _load_copy(receipt.body)
        disks = [
            ReceiptDisk(disk.name, row.object_id, disk.size_bytes, row.next_block, disk.is_based)
            for disk, row in zip(copy.disks, self._catalog.receipt_disks(receipt.id), strict=True)
        ]
        return Receipt(receipt.id, copy.base_uuid, copy.vm_name, receipt.data_bytes, disks, instance)


def base_uuid_of(receipt: ReceiptRow) -> str | None:
    """Of the snapshot that it was begun on."""
    return _load_copy(receipt.body).base_uuid


def vm_name_of(receipt: ReceiptRow) -> str:
    """Of the VM that it is of, or that it makes."""
    return _load_copy(receipt.body).vm_name


def _key(peer_id: int, purpose: Purpose, copy: SnapshotCopy) -> tuple[int, Purpose, str, str]:
    """Which VM it is of, or which copy: one snapshot may be copied to two names at once."""
    return peer_id, purpose, copy.vm_uuid, copy.vm_name if purpose == "copy" else ""


def _dump_copy(copy: SnapshotCopy) -> str:
    return json.dumps(copy._asdict())


def _load_copy(body: str) -> SnapshotCopy:
    fields: dict[str, Any] = json.loads(body)
    disks = [CopiedDisk(*disk) for disk in fields.pop("disks")]
    return SnapshotCopy(**{**fields, "terms": Terms(*fields["terms"]), "disks": disks})
