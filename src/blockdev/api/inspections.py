"""Checks and scrubs of the pool as jobs, and what they found in the words of VMs, disks and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockdev.api.jobs import Job
from blockdev.api.schemas import Inspected, InspectionProgress, InspectionRan, PoolFindings
from blockdev.api.services import Services
from blockdev.engine.protocol import EngineInspection
from blockdev.errors import BlockdevError
from blockdev.findings import InspectionKind
from blockdev.transfer.qemu_img import Cancelled
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.views import view_finding

WAIT_SECONDS = 0.5


def start(services: Services, kind: InspectionKind, rate_bytes: int | None) -> Job:
    """A job that follows the inspection it begins, or the one of this kind that runs already.  Busy, Unavailable."""
    run = services.engine.inspect(kind, rate_bytes)
    return services.jobs.start(kind, "pool", _follow(services, run))


def _follow(services: Services, run: int) -> Callable[[Job], dict[str, Any]]:
    def work(job: Job) -> dict[str, Any]:
        found = services.engine.inspection(run)
        while found.state == "running":
            if job.is_cancelled():
                services.engine.cancel_inspection(run)
            if found.total_bytes != job.total_bytes:
                job.expect(found.total_bytes)
            job.advance(found.done_bytes / max(found.total_bytes, 1))
            found = services.engine.inspection(run, WAIT_SECONDS)
        if found.state == "cancelled":
            raise Cancelled
        if found.error is not None:
            raise found.error
        job.expect(found.total_bytes)
        return _inspected(found).model_dump()

    return work


def _inspected(found: EngineInspection) -> Inspected:
    return Inspected(
        findings=[view_finding(finding) for finding in found.findings],
        more_findings=found.dropped,
        healed=found.healed,
        read_bytes=found.done_bytes,
    )


def known(services: Services) -> PoolFindings | None:
    """What the last check and scrub found and is still there; None while the engine is away."""
    try:
        found = services.engine.findings()
    except BlockdevError:
        return None
    return PoolFindings(
        running=_running(found["running"]),
        last_check=_ran(found["check"]),
        last_scrub=_ran(found["scrub"]),
        findings=[view_finding(finding) for finding in found["findings"]],
        more_findings=found["dropped"],
    )


def _running(progress: dict[str, Any] | None) -> InspectionProgress | None:
    if progress is None:
        return None
    return InspectionProgress(
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
