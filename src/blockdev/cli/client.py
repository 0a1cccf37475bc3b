"""The REST client over the home's Unix socket: one method per verb, errors as the exceptions of blockdev.errors."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import httpx

from blockdev import errors
from blockdev.clock import monotonic_seconds
from blockdev.home import Home

BASE = "http://blockdev/api/v1"
ANSWER_SECONDS_MAX = 300
RESTART_SECONDS_MAX = 15  # how long a supervisor may take to bring the control plane back


class Client:
    """Waits for a control plane that is being restarted; without anybody serving the home it fails at once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        transport = httpx.HTTPTransport(uds=str(home.api_socket))
        self._http = httpx.Client(base_url=BASE, transport=transport, timeout=ANSWER_SECONDS_MAX)

    def get(self, path: str, **query: Any) -> Any:
        return self._send("GET", path, None, query)

    def post(self, path: str, body: Any = None) -> Any:
        return self._send("POST", path, body if body is not None else {}, {})

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, body, {})

    def patch(self, path: str, body: Any) -> Any:
        return self._send("PATCH", path, body, {})

    def delete(self, path: str, **query: Any) -> Any:
        return self._send("DELETE", path, None, query)

    def _send(self, method: str, path: str, body: Any, query: dict[str, Any]) -> Any:
        given = {name: value for name, value in query.items() if value is not None}
        request = self._http.build_request(method, path.lstrip("/"), json=body, params=given)
        return _answer(self._connected(request))

    def _connected(self, request: httpx.Request) -> httpx.Response:
        deadline = monotonic_seconds() + RESTART_SECONDS_MAX
        while True:
            try:
                return self._http.send(request)
            except httpx.ConnectError:  # nothing was sent: safe to repeat
                self._home.require_initialised()
                if not is_locked(self._home.serve_lock) or monotonic_seconds() > deadline:
                    raise errors.Unavailable(
                        f"nobody serves {self._home.path}: start it with "
                        f"blockdevctl --home {self._home.path} serve"
                    ) from None
                time.sleep(0.05)
            except httpx.TimeoutException:
                raise errors.Unavailable(
                    f"the control plane did not answer in {ANSWER_SECONDS_MAX} s; the work may still be done: look "
                    "with vm list"
                ) from None
            except httpx.TransportError:
                raise errors.Unavailable(
                    "the control plane went away in the middle; the work may or may not be done: look with vm list"
                ) from None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the flock of `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _answer(response: httpx.Response) -> Any:
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        raise errors.BlockdevError(f"the control plane answered {response.status_code} without a reason") from None
    raise errors.from_code(code, message)
