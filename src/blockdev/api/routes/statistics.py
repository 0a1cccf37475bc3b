"""Statistics of VMs and of the pool: graphs, what goes on now, and /metrics for Prometheus (docs/statistics.md)."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from blockdev.api import statistics_views as views
from blockdev.api.schemas_statistics import AllNow, GraphView, VMNow
from blockdev.api.services import Services, Wired
from blockdev.errors import NotFound
from blockdev.statistics.history import POINTS_MAX
from blockdev.vmmap.catalog import VMRow

router = APIRouter(tags=["statistics"])
MOMENT_MAX = 1 << 40  # seconds
Since = Annotated[int, Query(ge=-MOMENT_MAX, le=MOMENT_MAX, description="seconds since 1970; at most 0: from now")]
Until = Annotated[int, Query(ge=-MOMENT_MAX, le=MOMENT_MAX, description="as `since`")]
Points = Annotated[int, Query(ge=1, le=POINTS_MAX, description="how many steps at most")]
Watch = Annotated[bool, Query(description="as of now, not of up to 10 s ago; the rates are those since the look before")]


@router.get("/vms/{vm}/statistics", response_model=GraphView)
def show_vm_statistics(vm: str, services: Wired, since: Since = -3600, until: Until = 0, points: Points = 600) -> Response:
    """One VM's graph, in columns.  null: nothing is known of that time."""
    row = _vm(services, vm)
    return _written(views.graph(services.statistics.graph(row.uuid, since, until, points), row))


@router.get("/vms/{vm}/statistics/now", response_model=VMNow)
def show_vm_statistics_now(vm: str, services: Wired, watch: Watch = False) -> Response:
    """What one VM and its disks do, and what they did since they were first seen."""
    row = _vm(services, vm)
    if watch:
        services.statistics.refresh()
    return _written(views.vm_now(services.statistics, row))


@router.get("/statistics", response_model=AllNow)
def list_statistics(services: Wired, watch: Watch = False) -> Response:
    """What all VMs do now, in columns, and all of them together."""
    if watch:
        services.statistics.refresh()
    return _written(views.all_now(services.statistics.latest()))


@router.get("/pool/statistics", response_model=GraphView)
def show_pool_statistics(services: Wired, since: Since = -3600, until: Until = 0, points: Points = 600) -> Response:
    """The graph of all VMs together, as `GET /vms/{vm}/statistics`."""
    return _written(views.graph(services.statistics.graph(None, since, until, points), None))


def _vm(services: Services, name: str) -> VMRow:
    row = services.catalog.vm(name)
    if row is None:
        raise NotFound(f"there is no VM {name}")
    return row


def _written(document: dict[str, Any]) -> Response:
    """As it is: validating columns takes longer than reading them."""
    return Response(json.dumps(document, separators=(",", ":")), media_type="application/json")
