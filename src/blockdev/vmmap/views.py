"""What the catalog's rows look like to a caller: the values of model.py."""

from __future__ import annotations

from collections import defaultdict

from blockdev.engine.protocol import EngineFinding
from blockdev.vmmap.catalog import Catalog, DiskRow, ImportRow, SnapshotDiskRow, SnapshotRow, VMRow
from blockdev.vmmap.catalog_domains import LinkRow
from blockdev.vmmap.model import VM, Disk, Domain, Finding, Import, Policy, Snapshot, SnapshotDisk
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
    return _vm(vm, catalog.disks(vm.id), catalog.snapshot_count(vm.id), clients, catalog.link(vm.id))


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
    """Some VMs, in three queries; called inside the transaction that found them."""
    ids = [vm.id for vm in vms]
    counts = catalog.snapshot_counts(ids)
    disks: dict[int, list[DiskRow]] = defaultdict(list)
    for disk in catalog.disks_of(ids):
        disks[disk.vm_id].append(disk)
    links = {link.vm_id: link for link in catalog.links_of(ids)}
    return [_vm(vm, disks[vm.id], counts.get(vm.id, 0), None, links.get(vm.id)) for vm in vms]


def view_domain(link: LinkRow) -> Domain:
    return Domain(link.hypervisor, link.name, link.uuid, link.state, bool(link.made))


def _vm(vm: VMRow, disks: list[DiskRow], snapshot_count: int, clients: Clients | None, link: LinkRow | None) -> VM:
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
        disks=[view_disk(vm, disk, clients) for disk in disks],
    )


def view_snapshot(
    vm: VMRow,
    snapshot: SnapshotRow,
    disks: list[SnapshotDiskRow],
    config: str | None = None,
    clients: Clients | None = None,
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
    """Some snapshots of a VM, in one query; called inside the transaction that found them."""
    disks: dict[int, list[SnapshotDiskRow]] = defaultdict(list)
    for disk in catalog.snapshot_disks_of(snapshot.id for snapshot in snapshots):
        disks[disk.snapshot_id].append(disk)
    return [view_snapshot(vm, snapshot, disks[snapshot.id]) for snapshot in snapshots]


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
