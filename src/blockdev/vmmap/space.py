"""What takes the pool's space, in the words of VMs and snapshots.

Imports under way and what is not of a VM are in no VM's numbers; what they hold is in the pool's.  What is deleted
between the look into the catalog and the engine's counts as nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from blockdev.accounting import Group, GroupUsage, PoolUsage, Usage
from blockdev.engine.client import EngineClient
from blockdev.vmmap.catalog import Catalog, SnapshotDiskRow, SnapshotRow, VMRow
from blockdev.vmmap.lookup import Lookup, object_ids
from blockdev.vmmap.model import PoolSpace, SnapshotSpace, Space, VMSpace


class _Asked(NamedTuple):
    """A VM to account for."""

    name: str
    size_bytes: int
    snapshots: list[SnapshotRow]
    group: Group


def space_of_vms(catalog: Catalog, engine: EngineClient, name: str | None = None) -> Space:
    """The pool, and all VMs or the one of that name.  Cost: a walk over all maps.

    NotFound; Unavailable; InvalidArgument: more disks and snapshots than are accounted for at once.
    """
    vms = catalog.vms() if name is None else [Lookup(catalog, engine).vm(name)]
    asked = [_asked(catalog, vm) for vm in vms]
    return _view(asked, engine.account([one.group for one in asked]))


def _asked(catalog: Catalog, vm: VMRow) -> _Asked:
    with catalog.transaction():  # one VM's: all of them would keep everybody else waiting
        return _read(catalog, vm)


def _read(catalog: Catalog, vm: VMRow) -> _Asked:
    snapshots = catalog.snapshots(vm.id)
    disks: dict[int, list[SnapshotDiskRow]] = defaultdict(list)
    for one in catalog.snapshot_disks_of_vm(vm.id):
        disks[one.snapshot_id].append(one)
    points: list[list[tuple[int, int | None]]] = []
    before: dict[str, int | None] = {}
    for snapshot in snapshots:
        parts = disks[snapshot.id]
        points.append([(one.object_id, before.get(one.name)) for one in parts if one.object_id is not None])
        before = {one.name: one.object_id for one in parts}
    own = catalog.disks(vm.id)
    size_bytes = sum(disk.size_bytes for disk in own)
    return _Asked(vm.name, size_bytes, snapshots, Group(object_ids(own), points))


def _view(asked: list[_Asked], usage: Usage) -> Space:
    vms = [_view_vm(one, group) for one, group in zip(asked, usage.groups, strict=True)]
    return Space(_view_pool(usage.pool), vms)


def _view_pool(pool: PoolUsage) -> PoolSpace:
    return PoolSpace(
        **pool._asdict(),
        dedup_saved_bytes=pool.logical_bytes - pool.disk_distinct_bytes,
        snapshot_only_bytes=pool.distinct_bytes - pool.disk_distinct_bytes,
        compression_saved_bytes=pool.distinct_bytes - pool.stored_bytes,
    )


def _view_vm(asked: _Asked, group: GroupUsage) -> VMSpace:
    snapshots = [
        SnapshotSpace(row.name, row.created, one.changed_bytes, one.frees_bytes)
        for row, one in zip(asked.snapshots, group.snapshots, strict=True)
    ]
    return VMSpace(
        vm=asked.name,
        size_bytes=asked.size_bytes,
        data_bytes=group.data_bytes,
        shared_bytes=group.shared_bytes,
        unique_stored_bytes=group.unique_stored_bytes,
        snapshots_stored_bytes=group.snapshots_stored_bytes,
        snapshots=snapshots,
    )
