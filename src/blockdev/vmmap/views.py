"""What the catalog's rows look like to a caller: the values of model.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from blockdev.engine.protocol import EngineFinding
from blockdev.vmmap.catalog import Catalog, DiskRow, ImportRow, SnapshotDiskRow, SnapshotRow, VMRow
from blockdev.vmmap.catalog_domains import LinkRow
from blockdev.vmmap.catalog_replication import GuardedRow, OriginRow
from blockdev.vmmap.model import VM, Disk, Domain, Finding, Import, Policy, Received, Snapshot, SnapshotDisk
from blockdev.vmmap.names import object_name, parse_object_name

Clients = dict[int, list[str]]  # object id -> who is attached


def view_disk(vm: VMRow, disk: DiskRow, clients: Clients | None = None) -> Disk:
    return Disk(
        name=disk.name,
        size_bytes=disk.size_bytes,
        export=object_name(vm.name, disk.name),
        object_id=disk.object_id,
        created=disk.created,
        state="missing" if disk.object_id is None else "ok",
        clients=None if clients is None else clients.get(disk.object_id or 0, []),
    )


def view_vm(catalog: Catalog, vm: VMRow, clients: Clients | None = None) -> VM:
    disks, count, link = catalog.disks(vm.id), catalog.snapshot_count(vm.id), catalog.link(vm.id)
    return _vm(vm, disks, count, clients, link, catalog.guards_of([vm.id]), _first(catalog.origins_of([vm.id])))


def view_finding(finding: EngineFinding) -> Finding:
    name = parse_object_name(finding.name)
    return Finding(
        vm=name.vm if name else None,
        disk=name.disk if name else None,
        snapshot=name.snapshot if name else None,
        object=(finding.name or f"object {finding.object_id}") if finding.object_id else None,
        offset=finding.offset,
        length=finding.length,
        what=finding.what,
    )


def view_vms(catalog: Catalog, vms: list[VMRow]) -> list[VM]:
    """Some VMs, in five queries; called inside the transaction that found them."""
    ids = [vm.id for vm in vms]
    counts = catalog.snapshot_counts(ids)
    disks: dict[int, list[DiskRow]] = defaultdict(list)
    for disk in catalog.disks_of(ids):
        disks[disk.vm_id].append(disk)
    guards: dict[int, list[GuardedRow]] = defaultdict(list)
    for guard in catalog.guards_of(ids):
        guards[guard.vm_id].append(guard)
    links = {link.vm_id: link for link in catalog.links_of(ids)}
    origins = {origin.vm_id: origin for origin in catalog.origins_of(ids)}
    return [
        _vm(vm, disks[vm.id], counts.get(vm.id, 0), None, links.get(vm.id), guards[vm.id], origins.get(vm.id)) for vm in vms
    ]


def _first(origins: list[OriginRow]) -> OriginRow | None:
    return origins[0] if origins else None


def view_domain(link: LinkRow) -> Domain:
    return Domain(link.hypervisor, link.name, link.uuid, link.state, bool(link.made))


def _vm(
    vm: VMRow,
    disks: list[DiskRow],
    snapshot_count: int,
    clients: Clients | None,
    link: LinkRow | None,
    guards: list[GuardedRow],
    origin: OriginRow | None,
) -> VM:
    return VM(
        name=vm.name,
        uuid=vm.uuid,
        description=vm.description,
        created=vm.created,
        size_bytes=sum(disk.size_bytes for disk in disks),
        snapshot_count=snapshot_count,
        cloned_from=vm.cloned_from,
        policy=Policy(vm.compression, vm.dedup),
        agent=vm.agent,
        domain=None if link is None else view_domain(link),
        protected_over=[guard.path for guard in guards],
        received=None if origin is None else Received(origin.peer, origin.since, origin.promoted),
        disks=[view_disk(vm, disk, clients) for disk in disks],
    )


def view_snapshot(
    vm: VMRow,
    snapshot: SnapshotRow,
    disks: list[SnapshotDiskRow],
    config: str | None = None,
    clients: Clients | None = None,
    guards: Sequence[GuardedRow] = (),
) -> Snapshot:
    return Snapshot(
        vm=vm.name,
        name=snapshot.name,
        description=snapshot.description,
        created=snapshot.created,
        lsn=snapshot.lsn,
        consistency=snapshot.consistency,
        origin=snapshot.origin,
        size_bytes=sum(disk.size_bytes for disk in disks),
        disks=[_snapshot_disk(vm, snapshot, disk, clients) for disk in disks],
        config=config,
        asked=snapshot.asked,
        frozen_ms=snapshot.frozen_ms,
        expires=snapshot.expires,
        locked_until=snapshot.locked_until,
        schedule=snapshot.schedule,
        uuid=snapshot.uuid,
        changed_bytes=snapshot.changed_bytes,
        newest_on=[guard.path for guard in guards if guard.newest_uuid == snapshot.uuid],
    )


def _snapshot_disk(
    vm: VMRow, snapshot: SnapshotRow, disk: SnapshotDiskRow, clients: Clients | None
) -> SnapshotDisk:
    return SnapshotDisk(
        name=disk.name,
        size_bytes=disk.size_bytes,
        export=object_name(vm.name, disk.name, snapshot.name),
        object_id=disk.object_id,
        state="missing" if disk.object_id is None else "ok",
        clients=None if clients is None else clients.get(disk.object_id or 0, []),
    )


def view_snapshots(catalog: Catalog, vm: VMRow, snapshots: list[SnapshotRow]) -> list[Snapshot]:
    """Some snapshots of a VM, in two queries; called inside the transaction that found them."""
    disks: dict[int, list[SnapshotDiskRow]] = defaultdict(list)
    for disk in catalog.snapshot_disks_of(snapshot.id for snapshot in snapshots):
        disks[disk.snapshot_id].append(disk)
    guards = catalog.guards_of([vm.id])
    return [view_snapshot(vm, snapshot, disks[snapshot.id], guards=guards) for snapshot in snapshots]


def view_import(vm: VMRow, row: ImportRow) -> Import:
    return Import(
        id=row.id,
        vm=vm.name,
        disk=row.disk,
        export=import_name(vm.name, row.disk),
        size_bytes=row.size_bytes,
        create=bool(row.creates),
        started=row.started,
    )


def import_name(vm: str, disk: str) -> str:
    """The export that an image is written to: `~` is in no disk's name."""
    return f"{object_name(vm, disk)}~import"
