"""/status, /attachments and /pool: both processes, who is attached, and whether the pool is sound."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from blockdev.api.jobs import Job
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import Attachment, AttachmentList, JobView, PoolResize
from blockdev.api.services import Wired
from blockdev.vmmap.model import Status

router = APIRouter(tags=["pool"])


@router.get("/status")
def show_status(services: Wired) -> Status:
    """The control plane and the engine; answers also while the engine is away."""
    return services.vms.status()


@router.get("/attachments")
def list_attachments(services: Wired) -> AttachmentList:
    """Every client connection to an export."""
    found = services.engine.attachments()
    return AttachmentList(attachments=[Attachment(export=name, client=client) for _, name, client in found])


@router.patch("/pool")
def resize_pool(body: PoolResize, services: Wired) -> Status:
    """Change how much the pool may hold, while it is in use; not less than it holds."""
    return services.vms.set_pool_capacity(body.capacity_bytes)


@router.post("/pool/check", status_code=202)
def check_pool(services: Wired) -> JobView:
    """Verify the pool's structure; the job's result is {"findings": [...]}, empty when it is sound."""
    return view(_start(services, "check", services.engine.check))


@router.post("/pool/scrub", status_code=202)
def scrub_pool(services: Wired) -> JobView:
    """Read and verify all data of the pool; the job's result is {"findings": [...]}, empty when it is sound."""
    return view(_start(services, "scrub", services.engine.scrub))


def _start(services: Wired, kind: str, find: Callable[[], list[str]]) -> Job:
    services.engine.hello()  # answers Unavailable at once, instead of by a job
    return services.jobs.start(kind, "pool", lambda job: {"findings": find()})
