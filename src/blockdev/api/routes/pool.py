"""/status, /attachments and /pool: both processes, who is attached, what the pool holds and whether it is sound."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query

from blockdev.api import pool_work
from blockdev.api.pages import COUNT_MAX, Count
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import (
    Attachment,
    AttachmentList,
    JobView,
    Pace,
    PoolChange,
    ServingView,
    StatusView,
)
from blockdev.api.services import Services, Wired
from blockdev.constants import NAME_BYTES_MAX
from blockdev.errors import InvalidArgument
from blockdev.vmmap.model import Space, Status
from blockdev.vmmap.names import NAME_CHARACTERS_MAX

router = APIRouter(tags=["pool"])
Asked = Annotated[Pace | None, Body()]


@router.get("/status")
def show_status(services: Wired) -> StatusView:
    """The control plane, the engine, and what is known to be wrong; answers also while the engine is away."""
    return _view_status(services, services.vms.status())


@router.get("/serving")
def show_serving(services: Wired) -> ServingView:
    """Where the engine serves disks over NBD."""
    nbd = services.nbd
    host = None if nbd is None or nbd.is_unspecified() else nbd.host
    return ServingView(nbd_socket=str(services.home.nbd_socket), nbd_host=host, nbd_port=None if nbd is None else nbd.port)


@router.get("/attachments")
def list_attachments(
    services: Wired,
    vm: Annotated[str | None, Query(max_length=NAME_CHARACTERS_MAX, description="to disks and snapshots of this VM only")] = None,
    count: Count = COUNT_MAX,
    after: Annotated[str, Query(max_length=NAME_BYTES_MAX, description="`next` of the answer before; absent: from the beginning")] = "",
) -> AttachmentList:
    """Every client connection to an export, by export; those to one export are not parted by the end of a page."""
    found = sorted((name, client) for _, name, client in services.engine.attachments() if name > after and vm in (None, name.partition("/")[0]))
    last = found[count - 1][0] if len(found) > count else None
    shown = found if last is None else [one for one in found if one[0] <= last]
    attachments = [Attachment(export=name, client=client) for name, client in shown]
    return AttachmentList(attachments=attachments, next=last if len(shown) < len(found) else None)


@router.patch("/pool")
def change_pool(body: PoolChange, services: Wired) -> StatusView:
    """Change how much the pool may hold (not less than it holds) and how it keeps data, while it is in use."""
    policy, status = body.given_policy(), None
    if body.capacity_bytes is not None:
        status = services.vms.set_pool_capacity(body.capacity_bytes)
    if policy:
        status = services.vms.set_pool_policy(policy)
    if status is None:
        raise InvalidArgument(f"nothing to change: give {', '.join(PoolChange.model_fields)}")
    return _view_status(services, status)


@router.get("/pool/usage")
def show_usage(services: Wired) -> Space:
    """What takes the pool's space, and which VM how much of it.  All maps are read: seconds on a large pool."""
    return services.vms.usage()


@router.post("/pool/check", status_code=202)
def check_pool(services: Wired, body: Asked = None) -> JobView:
    """Verify what describes data; the job's result is an Inspected.  One that runs already is joined."""
    return view(pool_work.inspect(services, "check", body.rate_bytes if body else None))


@router.post("/pool/scrub", status_code=202)
def scrub_pool(services: Wired, body: Asked = None) -> JobView:
    """Check, and read and verify all data; the job's result is an Inspected.  One that runs already is joined."""
    return view(pool_work.inspect(services, "scrub", body.rate_bytes if body else None))


@router.post("/pool/compact", status_code=202)
def compact_pool(services: Wired, body: Asked = None) -> JobView:
    """Give back the space of what no disk or snapshot reaches, and compress the rest; the job's result is a Compacted.

    One that runs already is joined.  Cancelled, it leaves what it gave back until then as it is.
    """
    return view(pool_work.compact(services, body.rate_bytes if body else None))


def _view_status(services: Services, status: Status) -> StatusView:
    known = pool_work.known(services) if status.engine_running else None
    engine = dict(status.engine)
    compaction = pool_work.view_progress(engine.pop("compaction", None))
    return StatusView(**{**vars(status), "engine": engine}, inspections=known, compaction=compaction)
