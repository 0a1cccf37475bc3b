"""Who is connected to what: the registry of client connections, kept by whichever nbdkit plugin serves.

Invariants: a token is given once in the life of an engine; an object is kept alive while a client is attached to it.
Threads: every method may be called from any thread; one lock, under which nothing blocks.
"""

from __future__ import annotations

import itertools
import threading
from typing import NamedTuple, Protocol


class Attachable(Protocol):
    """What an attachment needs of a vdisk or a vdisk snapshot."""

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str | None: ...


class Attachment(NamedTuple):
    """One client connection to one export."""

    token: int
    object_id: int
    name: str  # the object's name now, not when the client came: a forced rename leaves clients attached
    client: str  # "pid 123 (qemu-system-x86)" or "192.0.2.7:40312"


class Attachments:
    """Thread-safe registry of the open client connections of one engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._open: dict[int, tuple[Attachable, str]] = {}

    def attach(self, thing: Attachable, client: str) -> int:
        """Records that `client` opened `thing`; returns the token for detach."""
        with self._lock:
            token = next(self._tokens)
            self._open[token] = (thing, client)
            return token

    def detach(self, token: int) -> None:
        """Forgets one connection; a token that is not open is a bug."""
        with self._lock:
            del self._open[token]

    def clients(self, object_id: int) -> list[str]:
        """The clients attached to one object, in the order they came."""
        return [attachment.client for attachment in self.all() if attachment.object_id == object_id]

    def all(self) -> list[Attachment]:
        """Every open connection, in the order they came."""
        with self._lock:
            opened = list(self._open.items())
        return [Attachment(token, thing.id, thing.name or "", client) for token, (thing, client) in opened]
