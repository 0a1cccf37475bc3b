"""What a request must pass before any route sees it: size, and over TCP the name it was sent to.

Requests over TCP have no authentication yet, so only loopback addresses are bound (daemon.py), a web page may not reach
us through a name of its own (DNS rebinding), and nobody but the owner's Unix socket may name files to read or write.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from blockdev.api.failures import answer
from blockdev.errors import InvalidArgument, ReadOnly

BODY_BYTES_MAX = 4 << 20
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        await (refusal or self._app)(scope, receive, send)


def _refusal(scope: Scope) -> JSONResponse | None:
    headers = Headers(scope=scope)
    code = InvalidArgument.code
    if over_tcp(scope) and _host_name(headers.get("host", "")) not in LOCAL_NAMES:
        return answer(403, code, "over TCP, address the API as localhost, 127.0.0.1 or [::1]")
    if "transfer-encoding" in headers:
        return answer(411, code, "send the body with a Content-Length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
        return answer(413, code, f"the body is larger than {BODY_BYTES_MAX} bytes")
    return None


def over_tcp(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is not None


def _host_name(host: str) -> str:
    """The Host header without its port."""
    return host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.split(":")[0]


def files_allowed(request: Request) -> None:
    """A dependency of the routes that read or write files named by the client."""
    if over_tcp(request.scope):
        raise ReadOnly("files are read and written for clients of the Unix socket only: use blockdevctl on this machine")
