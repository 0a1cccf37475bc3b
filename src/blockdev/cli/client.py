"""The REST client over the home's Unix socket: one method per verb, errors as the exceptions of blockdev.errors.

http.client and not httpx: loading that takes longer than most commands (0.1 s, measured).
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from blockdev import errors
from blockdev.clock import monotonic_seconds
from blockdev.home import Home

PREFIX = "/api/v1"
ANSWER_SECONDS_MAX = 300
RESTART_SECONDS_MAX = 15  # how long a supervisor may take to bring the control plane back
RETRY_SECONDS = 0.05
LOOK = "look with blockdevctl vm list"
GOES_ON = "interrupted; the control plane goes on with what it was asked for: look with blockdevctl job list"


class _Answer(NamedTuple):
    status: int
    body: bytes


class _LocalConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, answer_seconds_max: float) -> None:
        super().__init__("localhost", timeout=answer_seconds_max)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Waits for a control plane that is being restarted; without anybody serving the home it fails at once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.restart_seconds_max: float = RESTART_SECONDS_MAX  # 0: whoever asks again anyway is told at once
        self.answer_seconds_max: float = ANSWER_SECONDS_MAX

    def get(self, path: str, /, **query: Any) -> Any:
        return self._send("GET", path, None, query)

    def get_all(self, path: str, things: str, /, **query: Any) -> Any:
        """All pages of a list as one: {things: [...]}."""
        found: list[Any] = []
        after: str | None = None
        while True:
            page = self.get(path, **query, after=after)
            found += page[things]
            after = page["next"]
            if after is None:
                return {things: found}

    def post(self, path: str, body: Any = None) -> Any:
        return self._send("POST", path, body, {})

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, body, {})

    def patch(self, path: str, body: Any) -> Any:
        return self._send("PATCH", path, body, {})

    def delete(self, path: str, /, **query: Any) -> Any:
        return self._send("DELETE", path, None, query)

    def _send(self, method: str, path: str, body: Any, query: dict[str, Any]) -> Any:
        """KeyboardInterrupt says so if what was asked for goes on without us."""
        given = {name: _text(value) for name, value in query.items() if value is not None}
        target = PREFIX + path + (f"?{urlencode(given)}" if given else "")
        wire = None if body is None else json.dumps(body)
        deadline = monotonic_seconds() + self.restart_seconds_max
        while True:
            try:
                return _understand(self._exchange(method, target, wire))
            except KeyboardInterrupt:
                if method == "GET":
                    raise
                raise KeyboardInterrupt(GOES_ON) from None
            except TimeoutError:
                rest = "" if method == "GET" else f"; the work may still be done: {LOOK}"
                raise errors.Unavailable(f"the control plane did not answer in {self.answer_seconds_max:g} s{rest}") from None
            except (OSError, http.client.HTTPException):
                # it may still take connections while it dies: what only reads is asked again of the next one
                if method != "GET" or monotonic_seconds() > deadline:
                    raise errors.Unavailable(
                        f"the control plane went away in the middle; the work may be done or not: {LOOK}"
                    ) from None
            time.sleep(RETRY_SECONDS)

    def _exchange(self, method: str, target: str, body: str | None) -> _Answer:
        """TimeoutError; OSError or HTTPException: it went away."""
        connection = self._connect()
        try:
            connection.request(method, target, body, {} if body is None else {"Content-Type": "application/json"})
            response = connection.getresponse()
            return _Answer(response.status, response.read())
        finally:
            connection.close()

    def _connect(self) -> _LocalConnection:
        deadline = monotonic_seconds() + self.restart_seconds_max
        while True:
            connection = _LocalConnection(self._home.api_socket, self.answer_seconds_max)
            try:
                connection.connect()
                return connection
            except OSError as error:
                connection.close()
                self._home.require_initialised()
                if isinstance(error, PermissionError):
                    raise self._home.of_another() from None
                if not is_locked(self._home.serve_lock) or monotonic_seconds() > deadline:
                    raise errors.Unavailable(
                        f"nobody serves {self._home.path}: start it with "
                        f"blockdevctl --home {self._home.path} serve"
                    ) from None
            time.sleep(RETRY_SECONDS)


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


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _understand(answer: _Answer) -> Any:
    try:
        document: Any = json.loads(answer.body) if answer.body else None
        if answer.status < 300:
            return document
        code, message = str(document["error"]["code"]), str(document["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise errors.BlockdevError(f"the control plane answered {answer.status} without a reason") from None
    raise errors.from_code(code, message)
