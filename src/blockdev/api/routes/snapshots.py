"""/vms/{vm}/snapshots: points in time of whole VMs, and what changed between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response

from blockdev.api.access import Asking, least_role
from blockdev.api.pages import COUNT_MAX, AfterSnapshot, Count, written
from blockdev.api.schemas import DiffView, Force, Name, NewSnapshot, OfDisk, SnapshotChange, SnapshotPage
from blockdev.api.services import Wired
from blockdev.api.unfinished import check_description
from blockdev.clock import now_seconds
from blockdev.constants import CHUNK_EXTENTS_MAX
from blockdev.errors import Busy, InvalidArgument
from blockdev.quiesce.snapshots import take_snapshot
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.model import Origin, RestorePreview, Snapshot, Terms
from blockdev.vmmap.names import NAME_CHARACTERS_MAX, is_unfinished

router = APIRouter(prefix="/vms/{vm}/snapshots", tags=["snapshots"])


@router.get("", response_model=SnapshotPage)
def list_snapshots(
    vm: str,
    services: Wired,
    count: Count = COUNT_MAX,
    after: AfterSnapshot = "0-0",
    origin: Annotated[Origin | None, Query(description="only those of this origin")] = None,
    schedule: Annotated[str | None, Query(max_length=NAME_CHARACTERS_MAX, description="only those that it took")] = None,
) -> Response:
    """Oldest first, without configuration texts."""
    lsn, number = map(int, after.split("-"))
    found, place = services.vms.page_of_snapshots(vm, (lsn, number), origin, schedule, count)
    cursor = None if place is None else "-".join(map(str, place))
    return written(SnapshotPage.model_construct(snapshots=found, next=cursor))


@router.post("", status_code=201)
def create_snapshot(vm: str, body: NewSnapshot, services: Wired) -> Snapshot:
    """All disks of the VM at one instant, and its configuration."""
    _check_later("lock", body.locked_until)
    return take_snapshot(
        services.vms,
        vm,
        body.name,
        check_description(body.description),
        Terms(asked=body.consistency, locked_until=body.locked_until),
        body.keep_seconds,
        body.if_not_frozen,
        body.freeze_seconds_max,
    )


@router.get("/{snapshot}")
def show_snapshot(vm: str, snapshot: str, services: Wired, caller: Asking) -> Snapshot:
    """One snapshot, with the clients attached to it; its configuration only for those who may read that of a VM."""
    found = services.vms.show_snapshot(vm, snapshot)
    return found if caller.may(least_role("get_config")) else replace(found, config=None)


@router.patch("/{snapshot}")
def change_snapshot(vm: str, snapshot: str, body: SnapshotChange, services: Wired) -> Snapshot:
    """Describe it, say when it expires, lock or unlock it."""
    terms = body.given_terms()
    if not terms:
        raise InvalidArgument(f"nothing to change: give {', '.join(SnapshotChange.model_fields)}")
    check_description(terms.get("description", ""))
    _check_later("lock", terms.get("locked_until"))
    _check_later("time to keep it", terms.get("expires"))
    if is_unfinished(services.vms.show_snapshot(vm, snapshot).description):
        raise Busy(f"snapshot {vm}@{snapshot} goes when the export that it was taken for ends: take another one")
    return services.vms.change_snapshot(vm, snapshot, terms)


@router.delete("/{snapshot}")
def delete_snapshot(vm: str, snapshot: str, services: Wired, force: Force = False) -> Snapshot:
    """Delete the snapshot, unless it is locked; clones made of it are not touched."""
    return services.vms.delete_snapshot(vm, snapshot, force)


@router.get("/{snapshot}/diff", response_model=DiffView)
def diff_snapshot(
    vm: str,
    snapshot: str,
    services: Wired,
    older: Annotated[Name | None, Query(description="the snapshot to compare with; absent: nothing")] = None,
    disk: OfDisk = None,
    count: Annotated[int, Query(ge=0, le=CHUNK_EXTENTS_MAX, description="of extents; 0: how much there is, alone")] = 10_000,
    after: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,63}:[0-9]{1,15}$", description="`next` of the page before")
    ] = None,
) -> object:
    """The extents that changed from `older` to this snapshot; without `older`, all that is allocated.  In pages."""
    return services.vms.diff(vm, older, snapshot, disk, count, after).to_json()


@router.get("/{snapshot}/restore")
def preview_restore(vm: str, snapshot: str, services: Wired, disk: OfDisk = None) -> RestorePreview:
    """What a restore to this snapshot, or of one disk of it, would change as things are now."""
    return services.vms.preview_restore(vm, snapshot, disk)


def _check_later(what: str, time: str | None) -> None:
    """Nobody means a time that has passed."""
    now = to_text(now_seconds())
    if time is not None and time <= now:
        raise InvalidArgument(f"the {what} would be over already: {time} is not after {now}")
