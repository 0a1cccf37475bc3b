"""The REST API as the console asks it: in process, with the token of whoever is signed in, by the same door as everybody.

A request goes through the whole application, Guard and all, as if it had come over TCP: without a valid token nothing is
answered, a token that was removed is refused from then on, and the history names the token.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote, urlencode

from starlette.types import ASGIApp, Message

from blockdev import errors

PREFIX = "/api/v1"
# An address with a port is one of TCP (api.guard.over_tcp): what we ask is never taken for the owner's.
HERE = ("console", 1)
PART = re.compile(r"[A-Za-z0-9._~*-]{1,255}")  # what a name or an id can have: nothing that leads to another address


class SignedOut(errors.NotAllowed):
    """The token is unknown, expired or removed."""


class Rest:
    """Asks for one caller."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def get(self, path: str, /, *parts: str, **query: Any) -> Any:
        """`get("/vms/{}/snapshots", vm, count=10)`.  Raises what blockdev.errors has for the answer's code, as all do here."""
        return await self._send("GET", path, parts, None, query)

    async def get_all(self, things: str, path: str, /, *parts: str, **query: Any) -> list[Any]:
        """All pages of a list: `get_all("vms", "/vms")`."""
        found: list[Any] = []
        after: str | None = None
        while True:
            page = await self.get(path, *parts, **query, after=after)
            found += page[things]
            after = page["next"]
            if after is None:
                return found

    async def post(self, path: str, /, *parts: str, body: Any = None, **query: Any) -> Any:
        return await self._send("POST", path, parts, body, query)

    async def put(self, path: str, /, *parts: str, body: Any = None, **query: Any) -> Any:
        return await self._send("PUT", path, parts, body, query)

    async def patch(self, path: str, /, *parts: str, body: Any = None, **query: Any) -> Any:
        return await self._send("PATCH", path, parts, body, query)

    async def delete(self, path: str, /, *parts: str, **query: Any) -> Any:
        return await self._send("DELETE", path, parts, None, query)

    async def _send(self, method: str, path: str, parts: tuple[str, ...], body: Any, query: dict[str, Any]) -> Any:
        for part in parts:
            if not PART.fullmatch(part) or part in (".", ".."):
                raise errors.NotFound(f"nothing is called {part[:80]!r}")
        target = PREFIX + path.format(*parts)
        given = urlencode({name: _text(value) for name, value in query.items() if value is not None})
        wire = b"" if body is None else json.dumps(body).encode()
        status, answer = await _exchange(self._app, self._scope(method, target, given, wire), wire)
        return _understand(status, answer)

    def _scope(self, method: str, target: str, query: str, body: bytes) -> dict[str, Any]:
        headers = [(b"host", b"console"), (b"authorization", f"Bearer {self._token}".encode(errors="replace"))]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())] if body else []
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": target,
            "raw_path": quote(target).encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("console", 0),
            "server": HERE,
        }


async def _exchange(app: ASGIApp, scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
    status, answer = 0, bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            answer.extend(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        if not status:  # else a bug that has been answered and logged (api.failures)
            raise
    return status, bytes(answer)


def _understand(status: int, answer: bytes) -> Any:
    try:
        document: Any = json.loads(answer) if answer else None
        if status < 300:
            return document
        code, message = str(document["error"]["code"]), str(document["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise errors.BlockdevError(f"the API answered {status} without a reason") from None
    if status == 401:
        raise SignedOut(message)
    raise errors.from_code(code, message)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
