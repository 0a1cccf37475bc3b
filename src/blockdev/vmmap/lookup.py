"""Finding what a caller named, and refusing what is not there, taken or in use, in words that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blockdev.engine.client import EngineClient
from blockdev.errors import AlreadyExists, BlockdevError, Busy, NotFound
from blockdev.vmmap.catalog import Catalog, DiskRow, ImportRow, SnapshotDiskRow, SnapshotRow, VMRow
from blockdev.vmmap.names import check_name, is_name
from blockdev.vmmap.views import Clients


class Lookup:
    """Questions to one catalog, and to the engine about who is attached."""

    def __init__(self, catalog: Catalog, engine: EngineClient) -> None:
        self._catalog = catalog
        self._engine = engine

    def vm(self, name: str) -> VMRow:
        row = self._catalog.vm(name) if isinstance(name, str) and is_name(name) else None
        if row is None:
            raise NotFound(f"there is no VM {name}")
        return row

    def disk(self, vm: VMRow, disk: str) -> DiskRow:
        row = self._catalog.disk(vm.id, disk) if is_name(disk) else None
        if row is None:
            raise NotFound(f"VM {vm.name} has no disk {disk}")
        return row

    def snapshot(self, vm: VMRow, snapshot: str) -> SnapshotRow:
        row = self._catalog.snapshot(vm.id, snapshot) if is_name(snapshot) else None
        if row is None:
            raise NotFound(f"VM {vm.name} has no snapshot {snapshot}")
        return row

    def snapshot_disks(self, vm: VMRow, snapshot: str, disk: str | None = None) -> list[SnapshotDiskRow]:
        """All disks of a snapshot, or the one that was named."""
        rows = self._catalog.snapshot_disks(self.snapshot(vm, snapshot).id)
        if disk is None:
            return rows
        found = [row for row in rows if row.name == disk]
        if not found:
            raise NotFound(f"snapshot {vm.name}@{snapshot} has no disk {disk}")
        return found

    def image_import(self, import_id: int) -> tuple[ImportRow, VMRow]:
        begun = self._catalog.import_by_id(import_id)
        vm = None if begun is None else self._catalog.vm_by_id(begun.vm_id)
        if begun is None or vm is None:
            raise NotFound(
                f"import {import_id} is no more: it was cancelled, or the engine was restarted under it"
            )
        return begun, vm

    def imports_into(self, vm: VMRow, disk: str) -> list[ImportRow]:
        return [one for one in self._catalog.imports(vm.id) if one.disk == disk]

    def check_new_vm(self, name: str) -> None:
        check_name("VM", name)
        if self._catalog.vm(name) is not None:
            raise AlreadyExists(f"there is a VM {name} already: choose another name")

    def check_new_disk(self, vm: VMRow, disk: str) -> None:
        check_name("disk", disk)
        if self._catalog.disk(vm.id, disk) is not None:
            raise AlreadyExists(f"VM {vm.name} has a disk {disk} already: choose another name")
        if self.imports_into(vm, disk):
            raise AlreadyExists(f"disk {vm.name}/{disk} is being imported already: wait for it, or cancel it")

    def check_new_snapshot(self, vm: VMRow, snapshot: str) -> None:
        check_name("snapshot", snapshot)
        if self._catalog.snapshot(vm.id, snapshot) is not None:
            raise AlreadyExists(f"VM {vm.name} has a snapshot {snapshot} already: choose another name")

    def clients(self) -> Clients | None:
        """Who is attached to what; None when the engine does not answer."""
        try:
            rows = self._engine.attachments()
        except BlockdevError:
            return None
        clients: Clients = {}
        for object_id, _, client in rows:
            clients.setdefault(object_id, []).append(client)
        return clients

    def attached(self, object_ids: Sequence[int]) -> list[str]:
        """The clients of these objects, each as `VM/DISK by CLIENT`."""
        wanted = set(object_ids)
        return [f"{name} by {client}" for id, name, client in self._engine.attachments() if id in wanted]

    def refuse_attached(self, object_ids: Sequence[int], advice: str = "detach first") -> None:
        """Busy, naming the clients, when one of the objects has any."""
        busy = self.attached(object_ids)
        if busy:
            raise Busy(f"attached: {', '.join(busy)}; {advice}")


def refuse_importing(vm: VMRow, imports: Sequence[ImportRow]) -> None:
    """Busy when there are any."""
    if imports:
        raise Busy(f"disk {vm.name}/{imports[0].disk} is being imported: wait for it, or cancel it")


def object_ids(rows: Sequence[Any]) -> list[int]:
    """Of those rows that the pool does not lack."""
    return [row.object_id for row in rows if row.object_id is not None]


def present(row: DiskRow | SnapshotDiskRow, what: str) -> int:
    """The row's object id; NotFound when the pool lacks it."""
    if row.object_id is None:
        raise NotFound(f"{what} is missing from the pool: see blockdevctl pool status")
    return row.object_id


def looks_received(catalog: Catalog, vm: VMRow) -> bool:
    """Whether all that it has came from a peer: so a received VM looks when the catalog that knew its peer is lost."""
    snapshots = catalog.snapshots(vm.id)
    return bool(snapshots) and not catalog.disks(vm.id) and all(one.origin == "replication" for one in snapshots)
