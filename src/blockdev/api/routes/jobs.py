"""/jobs: what was asked, long operations' progress, and how each ended."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from blockdev.api.job_views import find, find_past, page, view
from blockdev.api.jobs import FINISHED, JobState
from blockdev.api.pages import Count
from blockdev.api.schemas import WAIT_SECONDS_MAX, JobList, JobView
from blockdev.api.services import Wired
from blockdev.clock import monotonic_seconds
from blockdev.vmmap.catalog_jobs import JobFilter

__all__ = ["router", "view"]
router = APIRouter(prefix="/jobs", tags=["jobs"])
LOOK_SECONDS = 0.05


@router.get("")
def list_jobs(
    services: Wired,
    state: Annotated[JobState | None, Query(description="in this state only")] = None,
    kind: Annotated[str | None, Query(max_length=200, description="snapshot.create, or snapshot for all that is done with one")] = None,
    subject: Annotated[str | None, Query(max_length=200, description="web is also for web/root and web@s1")] = None,
    caller: Annotated[str | None, Query(max_length=200, description="owner, a token's name, or schedules")] = None,
    after: Annotated[str | None, Query(max_length=40, description="the answer's `next`, for the jobs before")] = None,
    count: Count = 100,
) -> JobList:
    """The newest first: long ones that run, and all that ended, whoever asked; the 10,000 newest are kept."""
    found, following = page(services, JobFilter(state, kind, subject, caller), after, count)
    return JobList(jobs=found, next=following)


@router.get("/{id}")
async def show_job(
    id: str,
    services: Wired,
    after: Annotated[int | None, Query(description="wait for a version above this one")] = None,
    wait_seconds: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX, description="with `after`: for so long")] = 0,
) -> JobView:
    """One job; with `after` and `wait_seconds` the answer comes when it changed or ended, or when the time is over."""
    job = services.jobs.find(id)
    if job is None:
        return await run_in_threadpool(find_past, services, id)
    deadline = monotonic_seconds() + wait_seconds
    while after is not None and job.version <= after and job.state not in FINISHED:
        if monotonic_seconds() >= deadline:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return view(job)


@router.delete("/{id}")
def cancel_job(id: str, services: Wired) -> JobView:
    """Ask it to stop and to take back what it did; one that has ended stays as it is."""
    job = services.jobs.find(id)
    if job is not None:
        job.cancel()
    return find(services, id)
