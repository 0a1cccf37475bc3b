"""Totals of disks and VMs that never go backwards, whoever was restarted: one SQLite file (docs/format/statistics.md).

A disk's total is a base and what the engine counted last: what it counts from 0 again after its restart goes on from there.  What
was taken is written down before anybody is told of it, so that a total which somebody has seen is never followed by a smaller one.
Of a disk that went, the VM keeps what it counted.  A write waits for no medium; a power cut may cost the last half minute.
Threads: one at a time; the service has the lock.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.statistics.counters import COUNT

logger = logging.getLogger(__name__)
Whole = NDArray[np.int64]

FORMAT = f"1 {COUNT}"
SCHEMA = """
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE disk (object_id INTEGER PRIMARY KEY, vm TEXT NOT NULL, name TEXT NOT NULL, base BLOB NOT NULL);
CREATE TABLE seen (object_id INTEGER PRIMARY KEY, counters BLOB NOT NULL);
CREATE TABLE gone (vm TEXT PRIMARY KEY, total BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE moved (vm TEXT, way TEXT, direction TEXT, logical INTEGER NOT NULL, network INTEGER NOT NULL,
    PRIMARY KEY (vm, way, direction)) WITHOUT ROWID;
"""
NOTHING: Whole = np.zeros(COUNT, np.int64)


class DiskKey(NamedTuple):
    """Whose a disk is."""

    vm: str  # UUID
    name: str


class FlowKey(NamedTuple):
    """A VM that is replicated some way."""

    vm: str  # UUID
    way: str
    direction: str


class Moved(NamedTuple):
    """By replication, in bytes."""

    logical: int
    network: int


class Totals:
    """Of one home."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or begins a new one when it is none of ours."""
        self._database = _open(path)
        self.instance = self._fact("instance")  # of the engine whose counters are known, in hexadecimal
        self.looked = float(self._fact("looked") or 0)  # when that was, seconds since 1970
        self.disks: dict[int, DiskKey] = {}
        self._base: dict[int, Whole] = {}
        self._seen: dict[int, Whole] = {}
        for object_id, vm, name, base in self._database.execute("SELECT * FROM disk"):
            self.disks[object_id] = DiskKey(vm, name)
            self._base[object_id] = _row(base)
        for object_id, seen in self._database.execute("SELECT * FROM seen"):
            self._seen[object_id] = _row(seen)
        self._gone: dict[str, Whole] = {vm: _row(total) for vm, total in self._database.execute("SELECT * FROM gone")}
        self._moved = {FlowKey(*row[:3]): Moved(*row[3:]) for row in self._database.execute("SELECT * FROM moved")}
        self._flows: dict[FlowKey, Moved] = {}  # as this process counts them

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()

    def total(self, object_id: int) -> Whole:
        found: Whole = self._base.get(object_id, NOTHING) + self._seen.get(object_id, NOTHING)
        return found

    def gone(self, vm: str) -> Whole:
        """Of disks that the VM has no more."""
        return self._gone.get(vm, NOTHING)

    def moved(self) -> Mapping[FlowKey, Moved]:
        return self._moved

    def take(
        self, instance: str, looked: float, ids: list[int], now: Whole, keys: Mapping[int, DiskKey], flows: Mapping[FlowKey, Moved]
    ) -> tuple[Whole, dict[FlowKey, Moved]]:
        """Note what the engine counted of these disks, of which `keys` says whose they are; what that is more than before.

        A disk that `keys` does not name counts to the VM that had it; of nobody's, nothing is kept.
        """
        restarted = instance != self.instance
        moved, changed = np.zeros_like(now), []
        for row, object_id in enumerate(ids):
            before = NOTHING if restarted else self._seen.get(object_id, NOTHING)
            moved[row] = now[row] - before
            if (moved[row] < 0).any():  # it was counted by another engine after all
                moved[row], before = now[row], NOTHING
            if object_id in keys and (restarted or moved[row].any() or object_id not in self.disks):
                changed.append((row, object_id))
        with self._writing():
            if restarted:
                self._keep_base()
            self._forget(keys)
            for row, object_id in changed:
                self._note(object_id, keys[object_id], now[row].copy())
            run = self._run_flows(flows)
            self._set_facts(instance, looked)
        return moved, run

    def rename(self, keys: Mapping[int, DiskKey]) -> None:
        """Disks that are called otherwise now."""
        for object_id, key in keys.items():
            if object_id in self.disks and self.disks[object_id] != key:
                self.disks[object_id] = key
                self._do("UPDATE disk SET vm = ?, name = ? WHERE object_id = ?", key.vm, key.name, object_id)

    def forget_vms(self, vms: Iterable[str]) -> None:
        """All of VMs that are no more."""
        with self._writing():
            for vm in vms:
                for object_id in [id for id, key in self.disks.items() if key.vm == vm]:
                    self._drop(object_id)
                self._gone.pop(vm, None)
                self._do("DELETE FROM gone WHERE vm = ?", vm)
                self._do("DELETE FROM moved WHERE vm = ?", vm)
                for flow in [key for key in self._moved if key.vm == vm]:
                    del self._moved[flow]

    def vms(self) -> set[str]:
        """Those of which something is kept."""
        return {key.vm for key in self.disks.values()} | set(self._gone) | {key.vm for key in self._moved}

    # within a transaction

    def _note(self, object_id: int, key: DiskKey, seen: Whole) -> None:
        if object_id not in self.disks:
            self.disks[object_id], self._base[object_id] = key, NOTHING
            self._do("INSERT OR REPLACE INTO disk VALUES (?, ?, ?, ?)", object_id, *key, NOTHING.tobytes())
        self._seen[object_id] = seen
        self._do("INSERT OR REPLACE INTO seen VALUES (?, ?)", object_id, seen.tobytes())

    def _keep_base(self) -> None:
        """The engine counts from 0 again."""
        for object_id, seen in self._seen.items():
            self._base[object_id] = self._base[object_id] + seen
            self._do("UPDATE disk SET base = ? WHERE object_id = ?", self._base[object_id].tobytes(), object_id)
        self._seen.clear()
        self._do("DELETE FROM seen")

    def _forget(self, keys: Mapping[int, DiskKey]) -> None:
        for object_id in [id for id in self.disks if id not in keys]:
            vm = self.disks[object_id].vm
            self._gone[vm] = self.gone(vm) + self.total(object_id)
            self._do("INSERT OR REPLACE INTO gone VALUES (?, ?)", vm, self._gone[vm].tobytes())
            self._drop(object_id)
        self.rename(keys)

    def _drop(self, object_id: int) -> None:
        del self.disks[object_id]
        self._base.pop(object_id, None)
        self._seen.pop(object_id, None)
        self._do("DELETE FROM disk WHERE object_id = ?", object_id)
        self._do("DELETE FROM seen WHERE object_id = ?", object_id)

    def _run_flows(self, flows: Mapping[FlowKey, Moved]) -> dict[FlowKey, Moved]:
        found = {}
        for key, count in flows.items():
            before = self._flows.get(key, Moved(0, 0))
            if count.logical < before.logical or count.network < before.network:
                before = Moved(0, 0)
            found[key] = Moved(count.logical - before.logical, count.network - before.network)
            known = self._moved.get(key)
            if known is None or any(found[key]):
                total = found[key] if known is None else Moved(known.logical + found[key].logical, known.network + found[key].network)
                self._moved[key] = total
                self._do("INSERT OR REPLACE INTO moved VALUES (?, ?, ?, ?, ?)", *key, *total)
        self._flows = dict(flows)
        return found

    def _set_facts(self, instance: str, looked: float) -> None:
        self.instance, self.looked = instance, looked
        for key, value in (("instance", instance), ("looked", repr(looked))):
            self._do("INSERT OR REPLACE INTO fact VALUES (?, ?)", key, value)

    def _fact(self, key: str) -> str:
        found = self._database.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return "" if found is None else str(found[0])

    def _do(self, statement: str, *values: object) -> None:
        self._database.execute(statement, values)

    def _writing(self) -> _Writing:
        return _Writing(self._database)


class _Writing:
    """A transaction.  What a full or broken medium does not take is known until this process ends."""

    _is_failing = False

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN")

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._database.execute("ROLLBACK")
            return
        try:
            self._database.execute("COMMIT")
            _Writing._is_failing = False
        except sqlite3.Error as failure:
            if not _Writing._is_failing:
                logger.warning("totals could not be written, a restart would set them back: %s", failure)
            _Writing._is_failing = True
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")


def _row(data: bytes) -> Whole:
    return np.frombuffer(data, np.int64)


def _open(path: Path) -> sqlite3.Connection:
    """With its schema.  A file that is none of ours is put aside: totals begin anew."""
    try:
        return _prepare(path)
    except (sqlite3.DatabaseError, ValueError) as error:
        logger.warning("%s is damaged or of another build, totals begin anew: %s", path, error)
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        return _prepare(path)


def _prepare(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            database.executescript(f"BEGIN; {SCHEMA} INSERT INTO fact VALUES ('format', '{FORMAT}'); COMMIT")
        found = database.execute("SELECT value FROM fact WHERE key = 'format'").fetchone()
        if found is None or found[0] != FORMAT:
            raise ValueError(f"its format is {found}")
        lengths = "SELECT (SELECT count(*) FROM disk WHERE length(base) <> ?1) + (SELECT count(*) FROM seen WHERE length(counters) <> ?1)"
        if database.execute(lengths, (COUNT * 8,)).fetchone()[0] or database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise ValueError("its content is damaged")
    except BaseException:
        database.close()
        raise
    return database
