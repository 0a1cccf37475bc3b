"""Room on the disk that the catalog has beforehand: what frees space must be written down on a full file system, too.

Three things keep it, and all survive a restart of the control plane:
  - SQLite's log (-wal) has its whole size from the beginning, and is written over again and again.  SQLite removes it
    with its last connection: it is put aside as `catalog.db-reserve` before, and taken back at the next start.
  - The database has free pages; operations that make something refuse to begin when they cannot be made again.
  - What a transaction adds to the database's size is there before it is committed.  So its pages can always be taken
    over from the log, which is then never longer than one transaction after LOG_PAGES_KEPT.
Written over in place, none of this asks the file system for room, where that is one that does not copy on write.

Durable: `take_back` syncs the log's name before SQLite writes to it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from typing import NamedTuple

from blockdev import _medium
from blockdev.errors import BlockdevError, MediumError, PoolFull

PAGE_BYTES = 4096
LOG_PAGES_KEPT = 250  # from here on each commit takes the log over into the database
AVAILABLE_BYTES_MIN = 1 << 20  # on the file system, for what is to grow: the longest configuration
LOG_HEADER_BYTES = 32  # zeroed, the log is empty (https://sqlite.org/fileformat2.html#the_write_ahead_log)


class ReserveSize(NamedTuple):
    """How much room is kept."""

    log_bytes: int
    free_pages: int  # made again when half of them are used


NO_RESERVE = ReserveSize(0, 0)
# To delete a VM of two disks and 10,000 snapshots takes 2 MiB of log and 31 free pages (measured).
DEFAULT_RESERVE = ReserveSize(4 << 20, 256)


class Reserve:
    """The room of one database; `take_back`, then SQLite opens it, then `hold`; `put_aside`, SQLite closes it, `close`."""

    def __init__(self, path: str, size: ReserveSize) -> None:
        self.size = size
        self._path = path
        self._log = f"{path}-wal"
        self._aside = f"{path}-reserve"
        self._file = -1  # the database; SQLite's locks go when any descriptor of it is closed, so it is kept

    def take_back(self) -> None:
        """Give SQLite the log that was put aside, empty.  A log that is there was left by a crash, and is not empty."""
        if self.size == NO_RESERVE or not os.path.exists(self._aside):
            return
        if os.path.exists(self._log):
            _medium.unlink_file(self._aside)
            return
        _medium.write_file(self._aside, [bytes(LOG_HEADER_BYTES)], create=False, durable=True)
        _medium.rename_file(self._aside, self._log)
        _medium.sync_directory(os.path.dirname(self._path))

    def hold(self, database: sqlite3.Connection) -> None:
        """SQLite has opened the database, which has PAGE_BYTES a page."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):  # after a power cut there may be holes where free pages are
            os.posix_fallocate(self._file, 0, os.fstat(self._file).st_size)
        database.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES_KEPT}")

    def require_available(self) -> None:
        """PoolFull when the file system is as good as full: what is reserved is for what frees space."""
        below = os.statvfs(os.path.dirname(self._path))
        if self.size != NO_RESERVE and below.f_bavail * below.f_frsize < AVAILABLE_BYTES_MIN:
            raise full(self._path)

    def lengthen_log(self) -> None:
        """To its whole size, with zeros, which SQLite takes for no frames.  PoolFull, MediumError."""
        missing_bytes = self.size.log_bytes - os.stat(self._log).st_size
        if missing_bytes > 0:
            file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                self._append(file, missing_bytes)
            finally:
                os.close(file)

    def missing_pages(self, database: sqlite3.Connection) -> int:
        """Free pages that are to be made; 0 until half of them are used."""
        free = int(database.execute("PRAGMA freelist_count").fetchone()[0])
        return self.size.free_pages - free if free < self.size.free_pages // 2 else 0

    def before_commit(self, database: sqlite3.Connection) -> None:
        """Have the database file as long as the transaction makes it.  PoolFull, MediumError."""
        size_bytes = int(database.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES
        missing_bytes = size_bytes - os.fstat(self._file).st_size
        if missing_bytes > 0:
            os.lseek(self._file, 0, os.SEEK_END)
            self._append(self._file, missing_bytes)

    def _append(self, file: int, byte_count: int) -> None:
        try:
            while byte_count > 0:
                byte_count -= os.write(file, bytes(min(byte_count, 1 << 20)))
        except OSError as error:
            raise full_or_failed(error, self._path) from error

    def put_aside(self, database: sqlite3.Connection) -> None:
        """Keep the log from being removed with the last connection, once nothing in it is needed any more."""
        if self.size == NO_RESERVE:
            return
        with suppress(sqlite3.Error, BlockdevError):
            busy, frames, done = database.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            if not busy and frames == done:
                _medium.rename_file(self._log, self._aside)

    def close(self) -> None:
        """SQLite has closed the database."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def full_or_failed(error: OSError, path: str) -> BlockdevError:
    """What a failed write to the catalog means for a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(path)
    return MediumError(f"the catalog {path} cannot be written: {error.strerror}", error.errno or errno.EIO)


def full(path: str) -> PoolFull:
    return PoolFull(
        f"the file system below {os.path.dirname(path)} is full: make room there; "
        "until then snapshots, disks and VMs can only be deleted"
    )
