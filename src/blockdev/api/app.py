"""The REST application under /api/v1."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from blockdev.api import failures
from blockdev.api.guard import Guard
from blockdev.api.routes import disks, events, jobs, pool, schedules, snapshots, vms
from blockdev.api.services import Services

PREFIX = "/api/v1"


def create_app(services: Services) -> FastAPI:
    """The application; documented at /api/v1/openapi.json."""
    app = FastAPI(
        title="blockdev",
        description="Virtual machines' disks, snapshots, schedules and clones.  Errors are {error: {code, message}}.",
        version=metadata.version("blockdev"),
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # they would load scripts from the internet
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
    )
    app.state.services = services
    whole = APIRouter(prefix=PREFIX, responses=failures.RESPONSES)
    for part in (vms, disks, snapshots, schedules, pool, jobs, events):
        whole.include_router(part.router)
    app.include_router(whole)
    app.add_middleware(Guard)
    failures.install(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
