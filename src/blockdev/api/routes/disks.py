"""/vms/{vm}/disks: adding, resizing, removing, importing and exporting disks."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from blockdev.api import exports, imports
from blockdev.api.guard import files_allowed
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import DiskExport, DiskImport, DiskResize, Force, JobView, NewDisk
from blockdev.api.services import Wired
from blockdev.errors import InvalidArgument
from blockdev.vmmap.model import Disk

router = APIRouter(prefix="/vms/{vm}/disks", tags=["disks"])


@router.post("", status_code=201)
def add_disk(vm: str, body: NewDisk, services: Wired) -> Disk:
    """A new, empty disk; for one with an image see import."""
    if body.image is not None or body.size_bytes is None:
        raise InvalidArgument(f"an empty disk needs size_bytes and no image; POST .../disks/{body.name}/import imports")
    return services.vms.add_disk(vm, body.name, body.size_bytes)


@router.patch("/{disk}")
def resize_disk(vm: str, disk: str, body: DiskResize, services: Wired) -> Disk:
    """Clients see the new size when they connect again, iSCSI initiators when they look again."""
    return services.vms.resize_disk(vm, disk, body.size_bytes, body.force_shrink)


@router.delete("/{disk}")
def remove_disk(vm: str, disk: str, services: Wired, force: Force = False) -> Disk:
    """Delete the disk; what snapshots hold of it stays."""
    return services.vms.remove_disk(vm, disk, force)


@router.post("/{disk}/import", status_code=202, dependencies=[Depends(files_allowed)])
def import_disk(vm: str, disk: str, body: DiskImport, services: Wired) -> JobView:
    """Fill a new disk, or with `replace` an old one, from an image; the VM changes when all of it is there.  The job's result is a Disk."""
    return view(imports.import_disk(services, vm, disk, body))


@router.post("/{disk}/export", status_code=202, dependencies=[Depends(files_allowed)])
def export_disk(vm: str, disk: str, body: DiskExport, services: Wired) -> JobView:
    """Make an image file of the disk, as it is now or in a snapshot; the job's result is a DiskExported."""
    return view(exports.export_disk(services, vm, disk, body))
