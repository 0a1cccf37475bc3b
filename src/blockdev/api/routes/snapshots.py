"""/vms/{vm}/snapshots: points in time of whole VMs, and what changed between them."""

from __future__ import annotations

from fastapi import APIRouter

from blockdev.api.schemas import DiffView, NewSnapshot, SnapshotList
from blockdev.api.services import Wired
from blockdev.api.unfinished import check_description
from blockdev.vmmap.model import Snapshot

router = APIRouter(prefix="/vms/{vm}/snapshots", tags=["snapshots"])


@router.get("")
def list_snapshots(vm: str, services: Wired) -> SnapshotList:
    """Oldest first, without configuration texts."""
    return SnapshotList(snapshots=services.vms.list_snapshots(vm))


@router.post("", status_code=201)
def create_snapshot(vm: str, body: NewSnapshot, services: Wired) -> Snapshot:
    """All disks of the VM at one instant, and its configuration."""
    return services.vms.create_snapshot(vm, body.name, check_description(body.description))


@router.get("/{snapshot}")
def show_snapshot(vm: str, snapshot: str, services: Wired) -> Snapshot:
    return services.vms.show_snapshot(vm, snapshot)


@router.delete("/{snapshot}")
def delete_snapshot(vm: str, snapshot: str, services: Wired, force: bool = False) -> Snapshot:
    """Delete the snapshot; clones made of it are not touched."""
    return services.vms.delete_snapshot(vm, snapshot, force)


@router.get("/{snapshot}/diff", response_model=DiffView)
def diff_snapshot(
    vm: str, snapshot: str, services: Wired, older: str | None = None, disk: str | None = None
) -> object:
    """The extents that changed from `older` to this snapshot; without `older`, all that is allocated."""
    return services.vms.diff(vm, older, snapshot, disk).to_json()
