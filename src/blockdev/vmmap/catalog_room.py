"""Room on the disk that the catalog has before it needs it, so that deletes work when the file system is full.

SQLite appends each transaction to its write-ahead log and copies that into the database at about 1,000 pages.  So the log's
file is made as long as it gets (behind its last frame SQLite takes nothing for something), and the database is kept with
free pages, so that copying needs no new ones.  SQLite removes the log when the catalog is closed; a file beside it holds the
room until the catalog is opened again.  Threads: the caller's, under the catalog's lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3

WAL_BYTES = 8 << 20
INDEX_BYTES = 64 << 10  # of the log; SQLite makes it, too
FREE_PAGES, FREE_PAGES_MIN = 64, 16
ROOM_BYTES_MIN = 64 << 20  # on the disk, before some of it is taken
ROW = "room"  # of the table setting; it is there for a moment only


def hold(path: str) -> None:
    """For the database at `path`, just closed.  Without room on the disk there is no such file."""
    with contextlib.suppress(OSError):
        held = os.open(_held(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(held, 0, WAL_BYTES + INDEX_BYTES)
        finally:
            os.close(held)


def let_go(path: str) -> None:
    """For the database at `path`, about to be opened."""
    with contextlib.suppress(OSError):
        os.unlink(_held(path))


def _held(path: str) -> str:
    return f"{path}-room"


def lengthen_log(path: str) -> None:
    """For the database at `path`, just opened.  Without room on the disk nothing changes."""
    with contextlib.suppress(OSError):
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(log, 0, WAL_BYTES)
        finally:
            os.close(log)


def keep_free_pages(database: sqlite3.Connection, path: str) -> None:
    """Outside of a transaction.  Two of its own: pages that one both takes and frees would not be on the disk."""
    if database.execute("PRAGMA freelist_count").fetchone()[0] >= FREE_PAGES_MIN:
        return
    with contextlib.suppress(OSError, sqlite3.Error):
        below = os.statvfs(path)
        if below.f_bavail * below.f_frsize >= ROOM_BYTES_MIN:
            page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
            filler = "x" * (FREE_PAGES * page_bytes)
            database.execute("INSERT OR REPLACE INTO setting (key, value) VALUES (?, ?)", (ROW, filler))
            database.execute("DELETE FROM setting WHERE key = ?", (ROW,))
            database.execute(
                "PRAGMA wal_checkpoint(PASSIVE)"
            ).fetchall()  # they are in the log only until then
