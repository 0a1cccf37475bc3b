"""/jobs: long operations, their progress and their end."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from blockdev.api.jobs import FINISHED, Job
from blockdev.api.schemas import WAIT_SECONDS_MAX, JobList, JobView
from blockdev.api.services import Wired
from blockdev.clock import monotonic_seconds
from blockdev.vmmap.clock import to_text

router = APIRouter(prefix="/jobs", tags=["jobs"])
LOOK_SECONDS = 0.05


@router.get("")
def list_jobs(services: Wired) -> JobList:
    """Those running and the latest that ended, oldest first."""
    return JobList(jobs=[view(job) for job in services.jobs.all()])


@router.get("/{id}")
async def show_job(
    id: str,
    services: Wired,
    after: Annotated[int | None, Query(description="wait for a version above this one")] = None,
    wait_seconds: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX)] = 0,
) -> JobView:
    """One job; with `after` and `wait_seconds` the answer comes when it changed or ended, or when the time is over."""
    job = services.jobs.get(id)
    deadline = monotonic_seconds() + wait_seconds
    while after is not None and job.version <= after and job.state not in FINISHED:
        if monotonic_seconds() >= deadline:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return view(job)


@router.delete("/{id}")
def cancel_job(id: str, services: Wired) -> JobView:
    """Ask it to stop and to take back what it did; one that has ended stays as it is."""
    return view(services.jobs.cancel(id))


def view(job: Job) -> JobView:
    with job.lock:
        return JobView.model_validate(
            {
                "id": job.id,
                "kind": job.kind,
                "subject": job.subject,
                "state": job.state,
                "total_bytes": job.total_bytes,
                "done_bytes": job.done_bytes,
                "fraction": job.fraction,
                "result": job.result,
                "error": job.error,
                "created": to_text(job.created_at),
                "finished": None if job.finished_at is None else to_text(job.finished_at),
                "version": job.version,
            }
        )
