"""A peer's part: it sends the snapshots of one VM, far-away, whose disks begin with the snapshot's number."""

from __future__ import annotations

from blockdev import Pool
from blockdev.vmmap.catalog_replication import Purpose
from blockdev.vmmap.model import Snapshot
from blockdev.vmmap.receipts import Receipt
from blockdev.vmmap.service import VMs
from tests.vmmap.world import sent_copy

FAR = "far-away"


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
