"""What jobs look like over REST: those that run and the latest that ended from memory, the others from the history."""

from __future__ import annotations

import json

from blockdev.api.jobs import FINISHED, Job, Jobs
from blockdev.api.schemas import ErrorDetail, JobView
from blockdev.api.services import Services
from blockdev.errors import InvalidArgument, NotFound
from blockdev.vmmap.catalog_jobs import JOBS_MAX, JobFilter, JobRow
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.events import printable

UNFINISHED = ("queued", "running")


def view(job: Job) -> JobView:
    with job.lock:
        return JobView.model_validate(
            {
                "id": job.id,
                "kind": job.kind,
                "subject": job.subject,
                "caller": job.caller,
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


def _view_row(row: JobRow) -> JobView:
    start, end = row.start, row.end
    known = end.total_bytes > 0 and end.state != "done"
    error = ErrorDetail(code=end.error_code, message=end.error_message or "") if end.error_code else None
    return JobView(
        **start._asdict(),
        state=end.state,  # type: ignore[arg-type]  # pydantic checks it
        total_bytes=end.total_bytes,
        done_bytes=end.done_bytes,
        fraction=end.done_bytes / end.total_bytes if known else float(end.state == "done"),
        result=None if end.result is None else json.loads(end.result),
        error=error,
        finished=end.finished,
        version=0,
    )


def find(services: Services, id: str) -> JobView:
    """NotFound."""
    job = services.jobs.find(id)
    return view(job) if job is not None else find_past(services, id)


def find_past(services: Services, id: str) -> JobView:
    """One that is not in memory any more.  NotFound."""
    services.recorder.flush()
    row = services.catalog.job(id)
    if row is None:
        raise NotFound(f"there is no job {printable(id, 40)}: the newest {JOBS_MAX} are kept")
    return _view_row(row)


def page(services: Services, wanted: JobFilter, after: str | None, count: int) -> tuple[list[JobView], str | None]:
    """The newest first, and the cursor of what comes then.  InvalidArgument: no such cursor."""
    before = None if after is None else _number(after)
    services.recorder.flush()
    is_open = wanted.state in UNFINISHED  # which of the two is known in memory only
    rows = services.catalog.jobs(wanted._replace(state="running") if is_open else wanted, before, count)
    views = [_view(row, services.jobs) for row in rows]
    if before is None and wanted == JobFilter():
        views = [*_unwritten(services, {one.id for one in views}), *views]
    if is_open:
        views = [one for one in views if one.state == wanted.state]
    return views, str(rows[-1].number) if len(rows) == count else None


def _view(row: JobRow, jobs: Jobs) -> JobView:
    job = jobs.find(row.start.id) if row.end.finished is None else None
    return _view_row(row) if job is None else view(job)


def _unwritten(services: Services, known: set[str]) -> list[JobView]:
    """What runs but is missing from the catalog, which had no room for it."""
    jobs = [job for job in services.jobs.all() if job.state not in FINISHED and job.id not in known]
    return [view(job) for job in reversed(jobs) if services.catalog.job(job.id) is None]


def _number(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidArgument("after is no cursor: give what an answer had as its next")
    return int(cursor)
