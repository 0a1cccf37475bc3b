"""The REST application under /api/v1."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

from blockdev.api import described, failures, schemas_results
from blockdev.api.access import authorise, least_role
from blockdev.api.guard import Guard, files_allowed
from blockdev.api.misfits import refuse_unknown_parameters
from blockdev.api.recording import Recording
from blockdev.api.routes import (
    disks,
    events,
    hypervisors,
    jobs,
    metrics,
    pool,
    protections,
    replication,
    schedules,
    snapshots,
    statistics,
    streams,
    targets,
    tokens,
    vms,
)
from blockdev.api.schemas import NAME_FORM, JobView
from blockdev.api.services import Services

PREFIX = "/api/v1"
PARTS = (vms, disks, snapshots, streams, statistics, schedules, replication, protections, pool, hypervisors, targets, jobs, events, tokens)
ROUTERS = (*(part.router for part in PARTS), tokens.who)
ABOUT = (
    "Virtual machines' disks, snapshots, schedules and clones.  Errors are {error: {code, message}}.  Sizes are bytes, times ISO 8601 "
    "UTC.  Served on the Unix socket run/api.sock of the home for its owner, and over TCP by blockdevctl serve --api.  Over TCP each request "
    "needs a token, whose role must be the one that the operation's security names, or a higher one: viewer, operator, admin."
)
LOCAL = "Over the Unix socket only: it names files or hypervisors of the machine that serves."
BEARER = {"type": "http", "scheme": "bearer", "description": "from blockdevctl token add; the owner's Unix socket needs none"}


def create_app(services: Services) -> FastAPI:
    """The application; documented at /api/v1/openapi.json."""
    app = FastAPI(
        title="blockdev",
        description=ABOUT,
        version=metadata.version("blockdev"),
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # they would load scripts from the internet
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
    )
    app.state.services = services
    whole = APIRouter(prefix=PREFIX, responses=failures.RESPONSES, dependencies=[Depends(authorise), Depends(refuse_unknown_parameters)])
    for router in ROUTERS:
        whole.include_router(router)
    app.include_router(whole)
    app.include_router(metrics.router, dependencies=[Depends(authorise)])
    app.add_middleware(Recording)
    app.add_middleware(Guard)  # comes first
    failures.install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _routes() -> list[APIRoute]:
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _operation_id(route: APIRoute) -> str:
    return route.name


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the token, the least role of each operation, and what can be in a path: names."""
    if app.openapi_schema is None:
        made = FastAPI.openapi(app)
        schemas = made["components"]["schemas"]
        schemas |= failures.schemas() | schemas_results.schemas(failures.REFERENCE) | schemas
        described.describe(schemas, [*(route.response_model for route in _routes()), *schemas_results.RESULTS.values()])
        schemas[JobView.__name__]["properties"]["result"]["description"] = schemas_results.BY_KIND
        made["components"]["securitySchemes"] = {"bearer": BEARER}
        local = {route.name for route in _routes() if any(one.call is files_allowed for one in route.dependant.dependencies)}
        for item in made["paths"].values():
            for operation in item.values():
                operation["security"] = [{"bearer": [least_role(operation["operationId"])]}]
                if operation["operationId"] in local:
                    operation["description"] += f"  {LOCAL}"
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] == "path":
                        parameter["schema"].update(NAME_FORM)
    assert app.openapi_schema is not None
    return app.openapi_schema
