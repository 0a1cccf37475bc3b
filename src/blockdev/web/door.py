"""What every request to the console passes, and what every answer has: the Host check and the security headers.

- Host: a page of a stranger's name that resolves to this machine (DNS rebinding) is same-origin with nothing of ours only as
  long as we answer to our own names alone.  Addresses cannot be rebound; names are localhost, the machine's own, and those
  that the certificate is for.
- Nothing but what the package holds is ever loaded, nothing inline is run, nobody may frame us, nothing is cached where
  others could read it, no address of ours is told to others.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockdev.api import certificate

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
PRIVATE = "no-store"
YEAR_SECONDS = 365 * 86400
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class Door:
    """ASGI middleware, around all of the console."""

    def __init__(self, app: ASGIApp, tls: Path | None) -> None:
        """tls: the directory of the certificate; None: plain HTTP."""
        self._app = app
        self._tls = tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        host = Request(scope).headers.get("host", "")
        if not is_ours(host, self._tls):
            text = "This is blockdev's console.  It does not answer to this name: use the machine's address, or its name.\n"
            await PlainTextResponse(text, 421, {"Connection": "close"})(scope, receive, guarded(send))
            return
        await self._app(scope, receive, guarded(send))


def guarded(send: Send) -> Send:
    """Sends answers with the security headers."""

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", PRIVATE)
        await send(message)

    return send_guarded


@lru_cache(64)
def is_ours(host: str, tls: Path | None) -> bool:
    """Whether a Host header names this machine in a way that nobody else can point at it."""
    match = HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    if name == "localhost" or name.endswith(".localhost") or name in _own_names():
        return True
    return tls is not None and certificate.names(tls, name)


@lru_cache(1)
def _own_names() -> frozenset[str]:
    return frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})


def is_same_origin(request: Request) -> bool:
    """Whether a request that changes something was made by a page of ours.  Old browsers and scripts say less: they need the CSRF token all the same."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == request.headers.get("host", "").lower()
