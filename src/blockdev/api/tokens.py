"""Bearer tokens: made, listed, removed, and recognised.

A token is `bdv_` and 32 random bytes in base64url.  Whoever has it is its caller; only its SHA-256 is kept, so neither the
catalog nor a copy of it lets anybody in.  Looking up a digest needs no comparison in constant time: what the time of a
lookup tells is how far two digests agree, and nobody can choose a token by its digest.

Threads: any.  Durable: whatever a method returned.  `caller` reads memory only, for it is asked by whoever reaches the port;
nobody but this process changes the table, so memory agrees with it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading

from blockdev.api.access import OWNER, Caller, Role
from blockdev.errors import AlreadyExists, InvalidArgument, NotFound
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_tokens import TokenRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.names import check_name

PREFIX = "bdv_"  # so that a token is recognised where it must not be, such as in a repository
RANDOM_BYTES = 32
CODE_PREFIX = "console-code-"  # names of those that sign in to the console once (web/signing.py)
CODE_SECONDS = 600  # and are valid so long,
SESSION_PREFIX = "console-session-"  # and of what they are changed for


class Tokens:
    """The tokens of one catalog."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._changing = threading.Lock()
        self._by_digest: dict[bytes, TokenRow] = {}
        self._remember()

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; None if it is nobody's, or not any more."""
        row = self._by_digest.get(_digest(token))
        if row is None or (row.expires is not None and row.expires <= to_text(self._clock())):
            return None
        return Caller(row.name, row.role)

    def add(self, name: str, role: Role, valid_seconds: float | None) -> tuple[TokenRow, str]:
        """A new token and its text, which is told this once.  valid_seconds: None: until removed.

        InvalidArgument; AlreadyExists; PoolFull: the file system is full.
        """
        check_name("token", name)
        if name == OWNER.name:
            raise InvalidArgument(f"{name!r} is who uses the Unix socket: take another name for a token")
        token = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(RANDOM_BYTES)).rstrip(b"=").decode()
        now = self._clock()
        expires = None if valid_seconds is None else to_text(now + valid_seconds)
        with self._changing:
            with self._catalog.transaction(grows=True):
                if self._catalog.token(name) is not None:
                    raise AlreadyExists(f"there is a token {name} already: choose another name, or remove it first")
                self._catalog.insert_token(name, role, _digest(token), to_text(now), expires)
            self._remember()
        return self._row(name), token

    def page(self, after: str, count: int) -> list[TokenRow]:
        """By name, those after the name `after`."""
        return self._catalog.tokens_page(after, count)

    def remove(self, name: str) -> TokenRow:
        """From now on it lets nobody in.  NotFound."""
        with self._changing:
            with self._catalog.transaction():
                row = self._row(name)
                self._catalog.delete_token(row.id)
            self._remember()
        return row

    def _row(self, name: str) -> TokenRow:
        row = self._catalog.token(name)
        if row is None:
            raise NotFound(f"there is no token {name}")
        return row

    def _remember(self) -> None:
        self._by_digest = {row.digest: row for row in self._catalog.tokens()}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
