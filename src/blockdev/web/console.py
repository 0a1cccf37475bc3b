"""The console as one application: over TCP, the API below /api and /metrics, pages everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from blockdev.errors import BlockdevError, NotFound
from blockdev.web import (
    activity,
    copies,
    live,
    paths,
    pool,
    protection,
    replication,
    settings,
    signing,
    targets,
    vm_page,
    vms,
)
from blockdev.web.ask import session_of
from blockdev.web.door import YEAR_SECONDS, Door, guarded
from blockdev.web.rendering import STATIC, render
from blockdev.web.sessions import Sessions
from blockdev.web.signing import Attempts

logger = logging.getLogger(__name__)
OF_THE_API = ("/api", "/metrics")
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}  # others of `static` are licences, in the package alone
PARTS = (vms, vm_page, copies, protection, replication, paths, pool, targets, activity, settings, live)
ROUTES = [*signing.ROUTES, *(route for part in PARTS for route in part.pages.routes)]


@dataclass(frozen=True)
class Console:
    """What serves whoever comes over TCP."""

    rest: ASGIApp
    pages: ASGIApp
    stop: Callable[[], None]  # ends answers that would go on for ever; from any thread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        is_api = any(path == one or path.startswith(one + "/") for one in OF_THE_API)
        if is_api:
            await self.rest(scope, receive, guarded(send))  # of the same origin as the pages
        else:
            await self.pages(scope, receive, send)


def create_console(rest: ASGIApp, tls: Path | None) -> Console:
    """rest: the API's application; tls: the directory of the certificate that it is served with, None: plain HTTP."""
    app = Starlette(
        routes=[Route("/static/{name:path}", static_file, methods=["GET"]), *ROUTES],
        exception_handlers={HTTPException: _nothing_there, Exception: _bug},
    )
    app.router.redirect_slashes = False
    app.state.rest = rest
    app.state.sessions = Sessions()
    app.state.attempts = Attempts()
    app.state.ending = live.Ending()
    return Console(rest, Door(app, tls), app.state.ending.begin)


async def static_file(request: Request) -> Response:
    """A script or style of the package: no secret, so nobody needs to be signed in."""
    name = request.path_params["name"]
    if name not in _static_names():
        raise HTTPException(404)
    keep = f"public, max-age={YEAR_SECONDS}, immutable" if request.query_params.get("v") else "no-cache"
    return FileResponse(STATIC / name, media_type=TYPES[Path(name).suffix], headers={"Cache-Control": keep})


def _static_names() -> set[str]:
    return {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.suffix in TYPES}


async def _nothing_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = NotFound(f"there is nothing at {request.url.path}") if error.status_code == 404 else BlockdevError(error.detail)
    return _error_page(request, known, error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    """The trace is in the log: starlette raises the exception again behind this answer."""
    return _error_page(request, BlockdevError(f"internal error: {type(error).__name__}; see the log of blockdevd"), 500, None)


def _error_page(request: Request, error: BlockdevError, status: int, headers: object) -> Response:
    given: dict[str, Any] = {"error": error, "session": session_of(request), "notices": [], "ask": None, "least": None}
    return HTMLResponse(render("error.html", given), status, headers)  # type: ignore[arg-type]
