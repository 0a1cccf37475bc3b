"""Checks, scrubs and compactions of the pool as jobs, and what is known of them in the words of VMs, disks and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from blockdev.api.jobs import Job, Work
from blockdev.api.schemas import Compacted, Inspected, InspectionRan, PoolFindings, Progress
from blockdev.api.services import Services
from blockdev.compaction import CompactionReport
from blockdev.engine.protocol import EngineInspection
from blockdev.errors import BlockdevError
from blockdev.findings import InspectionKind
from blockdev.runner import Outcome
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.events import Level, enumerate_some
from blockdev.vmmap.views import view_finding
from blockdev.watching import Cancelled

WAIT_SECONDS = 0.5

R = TypeVar("R")


class Told(NamedTuple):
    """An event of the pool."""

    level: Level
    message: str


def inspect(services: Services, kind: InspectionKind, rate_bytes: int | None) -> Job:
    """A job that follows the inspection it begins, or the one of this kind that runs already.  Busy, Unavailable."""
    engine = services.engine
    run = engine.inspect(kind, rate_bytes)
    follow = _follow(lambda wait_s: engine.inspection(run, wait_s), lambda: engine.cancel_inspection(run), _inspected)
    return services.jobs.start(f"pool.{kind}", "pool", _telling(services, follow, _inspection_told))


def compact(services: Services, rate_bytes: int | None) -> Job:
    """A job that follows the compaction it begins, or the one that runs already.  Unavailable."""
    engine = services.engine
    run = engine.compact(rate_bytes)
    follow = _follow(lambda wait_s: engine.compaction(run, wait_s), lambda: engine.cancel_compaction(run), _compacted)
    return services.jobs.start("pool.compact", "pool", _telling(services, follow, _compaction_told))


def _follow(
    look: Callable[[float], Outcome[R]], cancel: Callable[[], None], view: Callable[[R], BaseModel]
) -> Work:
    """look(seconds to wait for its end): how it stands in the engine."""

    def work(job: Job) -> dict[str, Any]:
        found = look(0)
        while found.state == "running":
            if job.is_cancelled():
                cancel()
            done_bytes, total_bytes = found.progress.done_bytes, found.progress.total_bytes
            if total_bytes != job.total_bytes:
                job.expect(total_bytes)
            job.advance(done_bytes / max(total_bytes, 1))
            found = look(WAIT_SECONDS)
        if found.state == "cancelled":
            raise Cancelled
        if found.error is not None:
            raise found.error
        assert found.report is not None
        job.expect(found.progress.total_bytes)
        return view(found.report).model_dump()

    return work


def _telling(services: Services, work: Work, told: Callable[[Job, dict[str, Any]], Told | None]) -> Work:
    """Notes as an event what the result of `work` has that somebody should know."""

    def do(job: Job) -> dict[str, Any]:
        result: dict[str, Any] = work(job)
        found = told(job, result)
        if found is not None:
            services.events.note(found.level, "pool", None, found.message)
        return result

    return do


def _inspection_told(job: Job, result: dict[str, Any]) -> Told | None:
    found, more = result["findings"], result["more_findings"]
    if not found:
        return None
    first = found[0]["object"] or "the pool itself"
    count = len(found) + more
    return Told("error", f"{job.kind} found {count} faults, of {first} first: {found[0]['what']}; see blockdevctl pool status")


def _compaction_told(_job: Job, result: dict[str, Any]) -> Told | None:
    kept = result["kept"]
    return Told("warning", f"compaction could not rewrite some segments: {enumerate_some(kept)}") if kept else None


def _inspected(report: EngineInspection) -> Inspected:
    return Inspected(
        findings=[view_finding(finding) for finding in report.findings],
        more_findings=report.dropped,
        healed=report.healed,
        read_bytes=report.done_bytes,
    )


def _compacted(report: CompactionReport) -> Compacted:
    return Compacted.model_validate(report._asdict())


def known(services: Services) -> PoolFindings | None:
    """What the last check and scrub found and is still there; None while the engine is away."""
    try:
        found = services.engine.findings()
    except BlockdevError:
        return None
    return PoolFindings(
        running=view_progress(found["running"]),
        last_check=_ran(found["check"]),
        last_scrub=_ran(found["scrub"]),
        findings=[view_finding(finding) for finding in found["findings"]],
        more_findings=found["dropped"],
    )


def view_progress(progress: dict[str, Any] | None) -> Progress | None:
    if progress is None:
        return None
    return Progress(
        kind=progress["kind"],
        started=to_text(progress["started"]),
        done_bytes=progress["done_bytes"],
        total_bytes=progress["total_bytes"],
    )


def _ran(ran: dict[str, Any] | None) -> InspectionRan | None:
    if ran is None:
        return None
    return InspectionRan(
        finished=to_text(ran["finished"]),
        read_bytes=ran["done_bytes"],
        finding_count=ran["finding_count"],
        healed_count=ran["healed_count"],
    )
