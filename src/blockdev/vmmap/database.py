"""The catalog's database: opening it, transactions with their reserve, queries.  What the rows are: catalog.py.

Threads: any; one lock, held for a whole transaction.  Durable: a transaction that was left without an exception.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from blockdev.errors import PoolFull
from blockdev.vmmap.catalog_schema import database_error, open_database
from blockdev.vmmap.reserve import NO_RESERVE, PAGE_BYTES, Reserve, ReserveSize

Row = TypeVar("Row")


class Database:
    """An open catalog, as transactions and rows."""

    def __init__(self, path: str | os.PathLike[str], reserve: ReserveSize = NO_RESERVE) -> None:
        """Opens `path`, or makes it.  UnknownFormat, Corrupt, Busy, MediumError, PoolFull."""
        self.path = os.path.abspath(os.fspath(path))
        self._lock = threading.RLock()
        self._reserve = Reserve(self.path, reserve)
        self._reserve.take_back()
        self._database = open_database(self.path)
        self._reserve.hold(self._database)
        with suppress(PoolFull):  # what makes something tries again, and tells
            self.require_room()

    def close(self) -> None:
        with self._lock:
            self._reserve.put_aside(self._database)
            self._database.close()
            self._reserve.close()

    @contextmanager
    def transaction(self, grows: bool = False) -> Iterator[None]:
        """All or none of what is done inside, durable when left; also one moment's view for several reads.

        grows: this is not to free space; PoolFull, before anything is done, when the reserve is not whole.
        """
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            if grows:
                self._reserve.require_available()
                self.require_room()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._reserve.before_commit(self._database)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise database_error(error, self.path) from error
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def require_room(self) -> None:
        """Make the reserve whole; PoolFull when the file system has no room for it."""
        with self._lock:
            self._reserve.lengthen_log()
            missing = self._reserve.missing_pages(self._database)
            if missing:
                with self.transaction():  # pages that it takes and gives back
                    self._do(
                        "INSERT INTO setting (key, value) VALUES ('room', ?)", "x" * (missing * PAGE_BYTES)
                    )
                    self._do("DELETE FROM setting WHERE key = 'room'")

    def _rows(self, make: Callable[..., Row], query: str, *values: Any) -> list[Row]:
        with self._lock:
            try:
                found = self._database.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise database_error(error, self.path) from error
        return [make(*row) for row in found]

    def _row(self, make: Callable[..., Row], query: str, *values: Any) -> Row | None:
        rows = self._rows(make, query, *values)
        return rows[0] if rows else None

    def _number(self, query: str, *values: Any) -> int:
        return self._rows(int, query, *values)[0]

    def _do(self, statement: str, *values: Any) -> int:
        """Runs one statement inside a transaction; returns the id of the row it inserted."""
        assert self._database.in_transaction
        return self._database.execute(statement, values).lastrowid or 0
