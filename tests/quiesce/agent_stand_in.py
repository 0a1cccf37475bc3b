"""A guest agent that can be told to misbehave: on a Unix socket, one client at a time, as QEMU offers its channel.

A stand-in for guests that cannot be had: hostile, slow, dying.  The real agent is in tests/guest/test_quiesce.py.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SYNC, STATUS = "guest-sync-delimited", "guest-fsfreeze-status"
FREEZE, THAW = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
WAIT_SECONDS = 60.0

Behaviour = Callable[["StandIn", dict[str, Any]], bytes]


class CloseConnection(Exception):
    """Send this, then close."""


class StandIn:
    """Well-behaved, but for `behaviours`: command to what makes the bytes of its answer."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.behaviours: dict[str, Behaviour] = {}
        self.left_behind = b""  # sent to a client that has just come
        self.file_system_count = 2
        self.frozen_count = 0
        self.connection_count = 0
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(1)
        self._client: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for end in (self._listener, self._client):
            if end is not None:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        self._listener.close()

    def wait_until(self, condition: Callable[[], bool], limit_s: float = WAIT_SECONDS) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, limit_s), f"not after {limit_s} s; requests: {self.requests}"

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            with self._client as client:
                self.connection_count += 1
                try:
                    client.sendall(self.left_behind)
                    self._talk(client)
                except OSError:
                    continue

    def _talk(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line.rpartition(b"\xff")[2])
                with self.changed:
                    self.requests.append(request["execute"])
                    self.changed.notify_all()
                try:
                    said = self.behaviours.get(request["execute"], well_behaved)(self, request)
                except CloseConnection as last_words:
                    client.sendall(*last_words.args)
                    return
                client.sendall(said)

    def set_frozen(self, count: int) -> int:
        """How many were frozen before."""
        with self.changed:
            before, self.frozen_count = self.frozen_count, count
            self.changed.notify_all()
        return before


def well_behaved(agent: StandIn, request: dict[str, Any]) -> bytes:
    command, content = request["execute"], None
    if command == SYNC:
        return b"\xff" + answer(request["arguments"]["id"])
    if command == STATUS:
        content = "frozen" if agent.frozen_count else "thawed"
    elif command == FREEZE:
        agent.set_frozen(agent.file_system_count)
        content = agent.file_system_count
    elif command == THAW:
        content = agent.set_frozen(0)
    return answer({} if content is None else content)


def answer(content: object) -> bytes:
    return json.dumps({"return": content}).encode() + b"\n"


def refusal(text: str) -> bytes:
    return json.dumps({"error": {"class": "GenericError", "desc": text}}).encode() + b"\n"


def saying(data: bytes) -> Behaviour:
    return lambda agent, request: data


def closing_after(data: bytes) -> Behaviour:
    def close(agent: StandIn, request: dict[str, Any]) -> bytes:
        raise CloseConnection(data)

    return close


def once(first: Behaviour) -> Behaviour:
    """`first` the first time, well behaved from then on."""
    times: Iterator[Behaviour] = iter([first])
    return lambda agent, request: next(times, well_behaved)(agent, request)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path / "agent.sock")
    yield made
    made.close()
