"""What statistics are made of, beside the engine's counters: the catalog's VMs, what replication moves, what space is taken."""

from __future__ import annotations

from blockdev.replicate.service import Replication
from blockdev.statistics.looks import Machines, Replicating, Sources, Space
from blockdev.statistics.ring_files import POOL
from blockdev.statistics.totals import DiskKey, FlowKey, Moved
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs


def sources(catalog: Catalog, vms: VMs, replication: Replication) -> Sources:
    """Of one home."""
    return Sources(
        machines=lambda: _machines(catalog),
        replication=lambda: _replicating(replication),
        space=lambda: _space(catalog, vms),
    )


def _machines(catalog: Catalog) -> Machines:
    with catalog.transaction():
        rows = catalog.vms()
        disks = [disk for disk in catalog.disks() if disk.object_id is not None]
    uuids = {row.id: row.uuid for row in rows}
    return Machines(
        {row.uuid: row.name for row in rows},
        {disk.object_id: DiskKey(uuids[disk.vm_id], disk.name) for disk in disks if disk.object_id is not None},
        {disk.object_id: disk.size_bytes for disk in disks if disk.object_id is not None},
    )


def _replicating(replication: Replication) -> dict[FlowKey, Replicating]:
    return {
        FlowKey(one.vm_uuid, one.way, one.direction): Replicating(Moved(*one.moved), one.bytes_remaining, one.lag_seconds, one.rpo_seconds)
        for one in replication.figures()
    }


def _space(catalog: Catalog, vms: VMs) -> dict[str, Space]:
    found = vms.usage()
    uuids = {row.name: row.uuid for row in catalog.vms()}
    spaces = {
        uuids[one.vm]: Space(one.data_bytes, one.snapshots_stored_bytes, one.unique_stored_bytes) for one in found.vms if one.vm in uuids
    }
    pool = found.pool
    spaces[POOL] = Space(pool.logical_bytes, pool.snapshot_only_bytes, pool.stored_bytes)
    return spaces
