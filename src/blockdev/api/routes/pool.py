"""/status, /attachments and /pool: both processes, who is attached, and whether the pool is sound."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from blockdev.api import pool_work
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import Attachment, AttachmentList, JobView, Pace, PoolResize, StatusView
from blockdev.api.services import Services, Wired
from blockdev.vmmap.model import Status

router = APIRouter(tags=["pool"])
Asked = Annotated[Pace | None, Body()]


@router.get("/status")
def show_status(services: Wired) -> StatusView:
    """The control plane, the engine, and what is known to be wrong; answers also while the engine is away."""
    return _view_status(services, services.vms.status())


@router.get("/attachments")
def list_attachments(services: Wired) -> AttachmentList:
    """Every client connection to an export."""
    found = services.engine.attachments()
    return AttachmentList(attachments=[Attachment(export=name, client=client) for _, name, client in found])


@router.patch("/pool")
def resize_pool(body: PoolResize, services: Wired) -> StatusView:
    """Change how much the pool may hold, while it is in use; not less than it holds."""
    return _view_status(services, services.vms.set_pool_capacity(body.capacity_bytes))


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
