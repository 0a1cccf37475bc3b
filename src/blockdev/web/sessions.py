"""Who is signed in: what a browser's cookie stands for.

Sessions are in memory alone: they end with the process, at sign-out, SECONDS_MAX after sign-in, or when nothing was asked
for IDLE_SECONDS.  A session has the token that its person gave, for it is what the REST API is asked with; no page has it.
The cookie's value is never kept: sessions are found by its digest.

Threads: the event loop's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from blockdev.api.access import Caller, Role
from blockdev.clock import monotonic_seconds

SECONDS_MAX = 12 * 3600
IDLE_SECONDS = 2 * 3600
NOTICES_MAX = 20  # that no page has come for
SESSIONS_MAX = 1000  # the oldest one goes


class Notice(NamedTuple):
    """What a page is to say first."""

    path: str
    words: str


@dataclass
class Session:
    """One signed-in browser."""

    name: str  # of the token
    role: Role
    token: str = field(repr=False)
    is_ours: bool  # the token was made for this session alone, and goes with it
    csrf: str = field(repr=False)
    id: str  # no secret: by which pages of one session in a browser know each other
    began: float
    used: float
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=NOTICES_MAX))

    def take_notices(self, path: str) -> list[str]:
        """What the page of that address is to say first, once."""
        found = [one for one in self.notices if one.path == path]
        for one in found:
            self.notices.remove(one)
        return [one.words for one in found]

    def may(self, role: Role) -> bool:
        return Caller(self.name, self.role).may(role)


class Sessions:
    """Those of one process."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Session] = {}

    def begin(self, name: str, role: Role, token: str, is_ours: bool) -> str:
        """A new session; the cookie's value.  It is always a new one: nobody can know it from before."""
        now = monotonic_seconds()
        for digest in [digest for digest, one in self._by_digest.items() if _is_over(one, now)]:
            del self._by_digest[digest]
        while len(self._by_digest) >= SESSIONS_MAX:
            del self._by_digest[next(iter(self._by_digest))]
        value = secrets.token_urlsafe(32)
        self._by_digest[_digest(value)] = Session(name, role, token, is_ours, secrets.token_urlsafe(32), secrets.token_hex(8), now, now)
        return value

    def find(self, value: str) -> Session | None:
        """The session of a cookie, unless it is over."""
        found = self._by_digest.get(_digest(value))
        if found is None:
            return None
        now = monotonic_seconds()
        if _is_over(found, now):
            self.end(value)
            return None
        found.used = now
        return found

    def is_there(self, value: str) -> bool:
        """As find, but it is not used by that."""
        found = self._by_digest.get(_digest(value))
        return found is not None and not _is_over(found, monotonic_seconds())

    def end(self, value: str) -> Session | None:
        """The session that was ended, if there was one."""
        return self._by_digest.pop(_digest(value), None)


def _is_over(session: Session, now: float) -> bool:
    return now - session.began > SECONDS_MAX or now - session.used > IDLE_SECONDS


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode(errors="surrogateescape")).digest()
