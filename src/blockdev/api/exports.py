"""The jobs that make image files of disks.

What is exported is always one instant: of a running VM a snapshot is taken, for the time of the export only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockdev import _medium
from blockdev.api.jobs import Job, Part
from blockdev.api.schemas import DiskExport, VMExport
from blockdev.api.services import Services
from blockdev.errors import AlreadyExists, InvalidArgument, NotFound
from blockdev.transfer.disk import check_destination, directory_beside, export_image
from blockdev.vmmap.model import Snapshot, SnapshotDisk


def export_disk(services: Services, vm: str, disk: str, body: DiskExport) -> Job:
    """Start the export; what can be refused at once is raised here."""
    _require_disk(services, vm, disk, body.snapshot)
    check_destination(body.path, body.format, body.overwrite)

    def work(job: Job) -> Any:
        with _instant(services, vm, body.snapshot, job) as snapshot:
            source = _disk_of(snapshot, disk)
            job.expect(source.size_bytes)
            used = export_image(services.uri(source.export), body.path, body.format, body.overwrite, job)
        return {"path": body.path, "format": body.format, "size_bytes": source.size_bytes, "used_bytes": used}

    return services.jobs.start("disk.export", f"{vm}/{disk}", work)


def export_vm(services: Services, vm: str, body: VMExport) -> Job:
    """Start the export of all disks and the configuration into a new directory."""
    if not services.vms.show_vm(vm).disks and body.snapshot is None:
        raise InvalidArgument(f"VM {vm} has no disks: there is nothing to export")
    if body.snapshot is not None:
        services.vms.show_snapshot(vm, body.snapshot)
    _check_directory(Path(body.directory))

    def work(job: Job) -> Any:
        with _instant(services, vm, body.snapshot, job) as snapshot:
            return _export_snapshot(services, snapshot, body, job)

    return services.jobs.start("vm.export", vm, work)


def _export_snapshot(services: Services, snapshot: Snapshot, body: VMExport, job: Job) -> dict[str, Any]:
    target = Path(body.directory)
    total = sum(disk.size_bytes for disk in snapshot.disks)
    job.expect(total)
    with directory_beside(target) as above:
        made = above / "vm"
        made.mkdir()
        before, disks = 0, []
        for disk in snapshot.disks:
            part = Part(job, before / total, (before + disk.size_bytes) / total)
            file = f"{disk.name}.{body.format}"
            used = export_image(services.uri(disk.export), str(made / file), body.format, False, part)
            disks.append({"name": disk.name, "size_bytes": disk.size_bytes, "file": file, "used_bytes": used})
            before += disk.size_bytes
        about = {"vm": snapshot.vm, "created": snapshot.created, "format": body.format, "disks": disks}
        text = json.dumps({**about, "config": snapshot.config}, indent=2) + "\n"
        _medium.write_file(str(made / "vm.json"), [text.encode()], create=True, durable=True)
        _medium.sync_directory(str(made))
        _check_directory(target)
        _medium.rename_file(str(made), str(target))  # an empty directory is replaced
        _medium.sync_directory(str(target.parent))
    return {"directory": body.directory, **about}


def _check_directory(target: Path) -> None:
    try:
        _check_target(target)
    except OSError as error:  # a name that is too long, a directory above that cannot be searched
        raise InvalidArgument(f"{target} cannot be written to by the blockdev daemon: {error.strerror}") from None


def _check_target(target: Path) -> None:
    if not target.is_absolute():
        raise InvalidArgument(f"path {str(target)!r} is not absolute")
    if not target.parent.is_dir():
        raise InvalidArgument(f"directory {target.parent} does not exist: make it first")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise AlreadyExists(f"{target} exists and is not a directory: choose another name")
    if target.is_dir() and any(target.iterdir()):
        raise AlreadyExists(f"directory {target} is not empty: choose another one")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InvalidArgument(f"directory {target.parent} cannot be written to by the blockdev daemon")


def _require_disk(services: Services, vm: str, disk: str, snapshot: str | None) -> None:
    if snapshot is not None:
        _disk_of(services.vms.show_snapshot(vm, snapshot), disk)
    elif disk not in {known.name for known in services.vms.show_vm(vm).disks}:
        raise NotFound(f"VM {vm} has no disk {disk}")


def _disk_of(snapshot: Snapshot, name: str) -> SnapshotDisk:
    for disk in snapshot.disks:
        if disk.name == name:
            return disk
    raise NotFound(f"snapshot {snapshot.vm}@{snapshot.name} has no disk {name}")


@contextmanager
def _instant(services: Services, vm: str, snapshot: str | None, job: Job) -> Iterator[Snapshot]:
    """The named snapshot, or one that lasts as long as the export."""
    if snapshot is not None:
        yield services.vms.show_snapshot(vm, snapshot)
        return
    with services.unfinished.snapshot(vm, f"export-{job.id}") as taken:
        yield taken
