"""A full pool, and a full file system below it, reached under load: writers wait for space, all else goes on, and so do
they once there is some, without a restart."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import nbd
from tests.cli.served import Home, until
from tests.engine.load import Crew
from tests.engine.model import SECTOR
from tests.nbd.file_system import mounted, take_all_room
from tests.nbd.fio_load import FILL_DISK_BYTES, FILL_JOBS, FioFill
from tests.nbd.lane import Lane
from tests.nbd.ledger import Ledger, Values, moment, stamp_value, value_bytes, values_of

MEBIBYTE = 1 << 20
LANES = 8
LANE_SECTORS = MEBIBYTE // SECTOR + 1  # lanes meet inside a block
DISK_SECTORS = LANES * LANE_SECTORS
REFUSED_ENOUGH = 20  # writes in a row, of each lane: it is full
PROGRESS = 20  # requests of a kind, of each lane: it goes on
FIO_BLOCKS = 16
PAUSE_SECONDS = 0.05  # of the snapshot's reader
WRITER_BEFORE = 99  # of what the disk holds at first
FILE_SYSTEM_BYTES, FOREIGN_BYTES = 640 * MEBIBYTE, 320 * MEBIBYTE


class FullLoad:
    """A served VM that LANES connections write to, a reader of its snapshot, and things to be deleted."""

    def __init__(self, home: Home, seed: int) -> None:
        self.home = home
        self.crew = Crew()
        self.snapshot_reads = 0
        home(
            "vm",
            "create",
            "load",
            "--disk",
            f"root={DISK_SECTORS * SECTOR}",
            "--disk",
            f"fio={FILL_DISK_BYTES}",
        )
        home("vm", "create", "gone", "--disk", f"root={MEBIBYTE}")
        self.ledger = Ledger(DISK_SECTORS)
        self.frozen = self._write_all()
        for snapshot in ("kept", "gone"):
            home("snapshot", "create", "load", "--name", snapshot)
        self.engine = home.engine_pid()
        self.lanes = [
            Lane(home.uri("load/root"), self.ledger, 1 + lane, lane * LANE_SECTORS, LANE_SECTORS, seed)
            for lane in range(LANES)
        ]

    def connect(self, export: str) -> nbd.NBD:
        handle = nbd.NBD()
        handle.connect_uri(self.home.uri(export))
        return handle

    def read(self, export: str = "load/root") -> Values:
        return values_of(self.connect(export).pread(DISK_SECTORS * SECTOR, 0), 0)

    def _write_all(self) -> Values:
        handle = self.connect("load/root")
        now = moment()
        handle.pwrite(value_bytes(stamp_value(WRITER_BEFORE, now), 0, DISK_SECTORS), 0)
        handle.flush()
        self.ledger.settle(np.full(DISK_SECTORS, stamp_value(WRITER_BEFORE, now), dtype=np.uint64))
        self.connect("gone/root").pwrite(b"g" * MEBIBYTE, 0)
        return self.ledger.base

    def start(self) -> None:
        for lane in self.lanes:
            self.crew.start(lambda lane=lane: lane.run(self.crew.stopped), repeat=False)
        self.crew.start(self._read_snapshot)

    def _read_snapshot(self) -> None:
        assert np.array_equal(self.read("load/root@kept"), self.frozen)
        self.snapshot_reads += 1
        self.crew.stopped.wait(PAUSE_SECONDS)

    def wait(self, found: Callable[[], bool], what: str) -> None:
        until(lambda: self.crew.failures or found(), what)
        if self.crew.failures:
            raise self.crew.failures[0]

    def wait_until_full(self) -> None:
        self.wait(
            lambda: all(lane.refused >= REFUSED_ENOUGH for lane in self.lanes), "ENOSPC on each connection"
        )

    def wait_for_progress(self, *kinds: str) -> None:
        """On each connection, requests of all these kinds succeed."""
        before = [{kind: lane.done[kind] for kind in kinds} for lane in self.lanes]

        def progress() -> bool:
            pairs = zip(self.lanes, before, strict=True)
            return all(
                lane.done[kind] >= count + PROGRESS for lane, was in pairs for kind, count in was.items()
            )

        self.wait(progress, f"{kinds} on each connection")

    def check_full(self) -> None:
        """Reads, flushes, discards and deletes go on while writers wait."""
        reads = self.snapshot_reads
        self.wait_for_progress("read", "flush")
        self.wait(lambda: self.snapshot_reads > reads, "reads of the snapshot")
        self.check_deletes()
        self.wait_until_full()

    def check_deletes(self) -> None:
        """Discards and deletes need no space."""
        handle = self.connect("gone/root")
        handle.trim(MEBIBYTE // 2, 0)
        handle.zero(MEBIBYTE // 2, MEBIBYTE // 2)
        handle.flush()
        assert handle.pread(MEBIBYTE, 0) == bytes(MEBIBYTE)
        handle.shutdown()
        self.home("snapshot", "delete", "load@gone", "--yes")
        self.home("vm", "delete", "gone", "--yes")
        assert [vm["name"] for vm in self.home.json("vm", "list")["vms"]] == ["load"]

    def check_goes_on(self) -> None:
        self.wait(lambda: not any(lane.refused for lane in self.lanes), "space on each connection")
        self.wait_for_progress("write", "read", "flush")

    def end(self) -> None:
        """Nothing but ENOSPC was told, by the engine that was there from the first, and what was told is so."""
        self.crew.stop()
        for lane in self.lanes:
            assert set(lane.errors) == {errno.ENOSPC}, lane.errors
        engine = self.home.json("pool", "status")["engine"]
        assert engine["pid"] == self.engine and not engine["stats"]["poisoned"]
        self.ledger.check("load/root", self.read(), moment())
        for kind in ("check", "scrub"):
            self.home("pool", kind)

    def check_after_kill(self) -> None:
        self.connect("load/root").flush()
        before = self.read()
        engine = self.home.engine_pid()
        os.kill(engine, signal.SIGKILL)
        until(
            lambda: self.home.json("pool", "status")["engine"].get("pid") not in (None, engine), "the engine"
        )
        assert np.array_equal(self.read(), before), "something that was flushed is lost"
        assert np.array_equal(self.read("load/root@kept"), self.frozen)


@contextmanager
def served(capacity: str, above: Path | None = None) -> Iterator[Home]:
    """A served home; `above` is the directory that it is made in."""
    home = Home()
    try:
        if above is not None:
            home.path = above / "home"
        home.init(capacity)
        home.serve()
        yield home
    finally:
        home.close()


def fill_and_go_on(
    home: Home, seed: int, scratch: Path, fill: Callable[[], None], free: Callable[[], None]
) -> None:
    """`fill` and `free` take and give what the load does not."""
    load, fio = FullLoad(home, seed), FioFill(home.uri("load/fio"), seed, scratch)
    try:
        load.start()
        load.wait_for_progress("write", "read", "flush")
        fill()
        print(f"fio wrote {fio.fill() / MEBIBYTE:.1f} MiB on {FILL_JOBS} connections until each got ENOSPC")
        load.wait_until_full()
        load.check_full()
        fio.verify()
        free()
        load.check_goes_on()
        load.end()  # before it has filled everything again
        fio.write_on(FIO_BLOCKS)
    finally:
        load.crew.stopped.set()
    load.check_after_kill()
    fio.verify()
    home("pool", "scrub")


def nothing() -> None:
    """The load does it all."""


def test_full_pool_goes_on_when_its_capacity_is_raised(seed: int, tmp_path: Path) -> None:
    with served("128M") as home:

        def free() -> None:
            home("pool", "resize", "--capacity", "512M")

        fill_and_go_on(home, seed, tmp_path, nothing, free)
        assert home.json("pool", "status")["engine"]["capacity_bytes"] == 512 * MEBIBYTE


@pytest.mark.parametrize(("kind", "by"), [("ext4", "load"), ("ext4", "foreign file"), ("xfs", "load")])
def test_full_file_system_goes_on_when_a_foreign_file_is_deleted(
    seed: int, tmp_path: Path, kind: str, by: str
) -> None:
    with mounted(kind, FILE_SYSTEM_BYTES) as directory, served("4G", directory) as home:
        foreign = directory / "foreign"
        if by == "load":
            with foreign.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, FOREIGN_BYTES)

        def fill() -> None:
            if by == "foreign file":
                take_all_room(foreign)

        fill_and_go_on(home, seed, tmp_path, fill, foreign.unlink)


def test_full_file_system_is_started_on(seed: int) -> None:
    """Stopped and killed when nothing is left, engine and control plane come back to read, discard and delete."""
    with mounted("ext4", FILE_SYSTEM_BYTES) as directory, served("4G", directory) as home:
        load, foreign = FullLoad(home, seed), directory / "foreign"
        load.start()
        load.wait_for_progress("write", "read", "flush")
        take_all_room(foreign)
        load.wait_until_full()
        load.crew.stop()
        before = load.read()
        home.stop()
        take_all_room(foreign)
        home.serve()
        take_all_room(foreign)
        assert np.array_equal(load.read(), before)
        load.check_after_kill()
        load.check_deletes()
        handle = load.connect("load/root")
        took(handle, os.urandom(MEBIBYTE))  # with room that compaction finds, or refused for want of it
        foreign.unlink()
        until(lambda: took(handle, os.urandom(MEBIBYTE)), "space")
        handle.flush()
        home("pool", "scrub")


def took(handle: nbd.NBD, data: bytes) -> bool:
    """Whether a write was taken, or refused for want of space."""
    try:
        handle.pwrite(data, 0)
    except nbd.Error as error:
        assert error.errnum == errno.ENOSPC
        return False
    return True
