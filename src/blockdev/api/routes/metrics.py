"""/metrics: what Prometheus scrapes, beside the API's own addresses since it is looked for there."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, Response

from blockdev.api.services import Services, Wired
from blockdev.errors import BlockdevError
from blockdev.statistics.exposition import CONTENT_TYPE, PoolFacts, exposition

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def show_metrics(services: Wired) -> Response:
    """Everything that Prometheus is told, as of now; also while the engine is away."""
    services.statistics.refresh()
    return Response(exposition(services.statistics.known(), _facts(services)), media_type=CONTENT_TYPE)


def _facts(services: Services) -> PoolFacts:
    try:
        engine = services.engine.status()
    except BlockdevError:
        engine = None
    with services.catalog.transaction():
        failing = [run for run in services.catalog.schedule_runs() if run.failures]
        uuids = {row.id: row.uuid for row in services.catalog.vms()} if failing else {}
    failures = {(uuids[run.vm_id], run.schedule): run.failures for run in failing if run.vm_id in uuids}
    return PoolFacts(metadata.version("blockdev"), engine, failures)
