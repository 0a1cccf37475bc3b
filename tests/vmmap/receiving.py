"""A peer's part: it sends the snapshots of one VM, distant, whose disks begin with the snapshot's number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockdev import Pool
from blockdev.vmmap.catalog_replication import Purpose
from blockdev.vmmap.copies import SnapshotCopy
from blockdev.vmmap.model import Snapshot
from blockdev.vmmap.receipts import Receipt
from blockdev.vmmap.service import VMs
from tests.vmmap.world import LATER, OPERATIONS, add_peer, build, sent_copy

FAR = "distant"
NEWCOMER = sent_copy(1)._replace(
    vm_name="newcomer", vm_uuid="66666666-2222-4333-8444-555555555555", uuid="66666666-3333-4333-8444-555555555555"
)
ANOTHER = NEWCOMER._replace(
    vm_name="another", vm_uuid="66666666-4444-4333-8444-555555555555", uuid="66666666-5555-4333-8444-555555555555"
)
COPIED = sent_copy(2)._replace(vm_name="copied")


def build_receiving(vms: VMs, pool: Pool) -> None:
    """The small world, and a peer's VM of two snapshots, of the next of which a part is here, as of another VM, and of a copy."""
    build(vms, pool)
    peer = add_peer(vms._catalog, "east")
    receive(vms, pool, peer, 1)
    receive(vms, pool, peer, 2, [1])
    for receipt in (
        begin(vms, peer, 3, [2, 1]),
        vms.begin_receipt(peer, "protect", NEWCOMER, []),
        vms.begin_receipt(peer, "copy", COPIED, [COPIED.uuid]),
    ):
        assert receipt is not None
        fill(pool, receipt, b"%d" % receipt.id)
        vms.make_receipt_durable(receipt)
        vms.save_receipt(receipt, [2, 1], 8192)


def _peer(vms: VMs) -> int:
    row = vms._catalog.peer("east")
    assert row is not None
    return row.id


def _go_on(vms: VMs, copy: SnapshotCopy, purpose: Purpose = "protect") -> Receipt:
    receipt = vms.begin_receipt(_peer(vms), purpose, copy, [sent_copy(2).uuid, sent_copy(1).uuid])
    assert receipt is not None
    return receipt


def _finish(vms: VMs, copy: SnapshotCopy, purpose: Purpose = "protect") -> Snapshot:
    receipt = _go_on(vms, copy, purpose)
    return vms.finish_receipt(receipt, vms.receipt_digests(receipt), 3600.0, 300)


RECEIVING: dict[str, Callable[[VMs], Any]] = {
    "begin to receive a VM": lambda vms: _go_on(vms, ANOTHER),
    "begin to receive a snapshot": lambda vms: begin(vms, _peer(vms), 4, [2, 1]),
    "begin to receive a snapshot anew": lambda vms: begin(vms, _peer(vms), 3, [1]),
    "begin to receive a copy": lambda vms: _go_on(vms, COPIED._replace(vm_name="copied-2"), "copy"),
    "note how far a receipt is": lambda vms: vms.save_receipt(_go_on(vms, sent_copy(3)), [200, 2], 12345),
    "receive a snapshot": lambda vms: _finish(vms, sent_copy(3)),
    "receive a VM": lambda vms: _finish(vms, NEWCOMER),
    "receive a copy": lambda vms: _finish(vms, COPIED, "copy"),
    "clone for a peer": lambda vms: vms.clone_for_peer(FAR, "far-2", "theirs", _peer(vms)),
    "drop a receipt": lambda vms: vms.drop_receipt(_go_on(vms, sent_copy(3)).id),
    "drop what nobody goes on with": lambda vms: vms.drop_stale_receipts(LATER),
    "forget a peer": lambda vms: vms.forget_peer(_peer(vms)),
    "promote a VM": lambda vms: vms.promote(FAR),
    "promote a VM to an older snapshot": lambda vms: vms.promote(FAR, "far-1"),
    "demote a VM": lambda vms: vms.demote("web", _peer(vms)),
    "demote a VM without disks": lambda vms: vms.demote("spare", _peer(vms)),
    "rename a received VM": lambda vms: vms.rename_vm(FAR, "mine"),
    "delete a received VM": lambda vms: vms.delete_vm(FAR, force=True),
}
ALL_OPERATIONS = {**OPERATIONS, **RECEIVING}  # on the world of `build_receiving`


def begin(vms: VMs, peer: int, number: int = 1, ancestors: list[int] | None = None, purpose: Purpose = "protect") -> Receipt:
    """Of the peer's snapshot of that number, the ones of `ancestors` being there, too."""
    uuids = [sent_copy(one).uuid for one in ancestors or []]
    begun = vms.begin_receipt(peer, purpose, sent_copy(number), uuids)
    assert begun is not None
    return begun


def fill(pool: Pool, receipt: Receipt, byte: bytes) -> None:
    for disk in receipt.disks:
        pool.get(disk.object_id).write(0, byte * 512)


def receive(vms: VMs, pool: Pool, peer: int, number: int = 1, ancestors: list[int] | None = None) -> Snapshot:
    """All of it."""
    receipt = begin(vms, peer, number, ancestors)
    fill(pool, receipt, b"%d" % number)
    return vms.finish_receipt(receipt, vms.receipt_digests(receipt))
