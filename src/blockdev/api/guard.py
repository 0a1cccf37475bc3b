"""What a request must pass before any route sees it: over TCP its token, and its size.

The owner's Unix socket (mode 0600, in a directory of mode 0700) needs no token: the kernel has checked who is there.  Over
TCP every request needs one, on loopback too, where all users of the machine are.  The Host header is not looked at any
more: it kept web pages from reaching us through a name of their own (DNS rebinding) while there was no authentication.
A token is not sent by a browser on its own account, as a cookie is, so what such a page sends is refused for want of one;
and off loopback nobody knows all the names by which we are reached.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from blockdev.api.access import OWNER, Caller
from blockdev.api.failures import answer
from blockdev.errors import InvalidArgument, NotAllowed

BODY_BYTES_MAX = 4 << 20


class Guard:
    """ASGI middleware.  Says who asks: `request.state.caller`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # we serve no WebSockets, and start nothing with the server
            return
        headers = Headers(scope=scope)
        caller = _caller(scope, headers)
        scope.setdefault("state", {})["caller"] = caller
        refusal = _unknown(headers) if caller is None else _misshapen(headers)
        await (refusal or self._app)(scope, receive, send)


def _caller(scope: Scope, headers: Headers) -> Caller | None:
    if not over_tcp(scope):
        return OWNER
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    found: Caller | None = scope["app"].state.services.tokens.caller(token.strip())
    return found


def _unknown(headers: Headers) -> JSONResponse:
    """RFC 6750: whoever sent a token is told that it is no good, whoever sent none that one is needed."""
    given = "authorization" in headers
    words = "this token lets nobody in: it is unknown, expired or removed" if given else "over TCP a token is needed"
    refusal = answer(401, NotAllowed.code, f"{words}; blockdevctl token add makes one, for Authorization: Bearer TOKEN")
    refusal.headers["Connection"] = "close"
    refusal.headers["WWW-Authenticate"] = 'Bearer realm="blockdev"' + (', error="invalid_token"' if given else "")
    return refusal


def _misshapen(headers: Headers) -> JSONResponse | None:
    code = InvalidArgument.code
    if "transfer-encoding" in headers:
        return answer(411, code, "send the body with a Content-Length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
        return answer(413, code, f"the body is larger than {BODY_BYTES_MAX} bytes")
    return None


def over_tcp(scope: Scope) -> bool:
    """Whatever is not known to be a Unix socket counts as TCP."""
    server = scope.get("server")
    return server is None or server[1] is not None


def files_allowed(request: Request) -> None:
    """A dependency of the routes that use what the client names on this machine: a token is no login to it."""
    if over_tcp(request.scope):
        raise NotAllowed("files, sockets and hypervisors are named by clients of the Unix socket only: use blockdevctl on this machine")


def registering_allowed(request: Request) -> None:
    """A dependency of the route that makes domains of configurations, which can name programs of the hypervisor."""
    tcp = request.app.state.services.tcp
    if over_tcp(request.scope) and not tcp.registers:
        raise NotAllowed(
            "domains are made at hypervisors by clients of the Unix socket only, unless blockdevctl serve was started with "
            "--api-hypervisors: use blockdevctl vm register on this machine"
        )
