"""A home on a file system without a block left: what frees space is done, all else is refused and leaves nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import PoolFull
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.reserve import DEFAULT_RESERVE
from blockdev.vmmap.service import VMs
from tests.child import DIED_AS_TOLD, Child, Say
from tests.nbd.file_system import mounted, take_all_room
from tests.vmmap.test_catalog import NOW
from tests.vmmap.world import MEBIBYTE, OPERATIONS, Clock, build, check_agreed, observe

UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
OTHER_UUID = "0d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b12"
DONE_WITHOUT_ROOM = [
    "delete a VM",
    "delete a VM without disks",
    "delete a snapshot",
    "expire snapshots",
    "remove a disk",
    "note that a guest was frozen",  # the second half of taking its snapshot
]


class FullHome:
    """A catalog on a file system of its own, which `fill` takes all room of; the pool is elsewhere and has some."""

    def __init__(self, above: Path, pool_path: str, socket_path: str) -> None:
        self.path = above / "catalog.db"
        self._foreign = above / "foreign"
        self.pool = Pool.create(pool_path, 64 << 20, segment_bytes=1 << 20)
        self.socket_path = socket_path
        self._server = EngineServer(self.pool, Attachments(), socket_path)
        self._server.start()
        self.open()

    def open(self) -> None:
        self.catalog = Catalog(self.path, DEFAULT_RESERVE)
        self.engine = EngineClient(self.socket_path)
        self.vms = VMs(self.catalog, self.engine, clock=Clock())

    def close_control(self) -> None:
        self.catalog.close()
        self.engine.close()

    def close(self) -> None:
        self.close_control()
        self._server.stop()
        self.pool.close()

    def fill(self) -> None:
        take_all_room(self._foreign)

    def make_room(self) -> None:
        self._foreign.unlink()

    def check(self) -> None:
        check_agreed(self.vms, self.catalog, self.engine)


@pytest.fixture
def home(pool_path: str, socket_path: str) -> Iterator[FullHome]:
    with mounted("ext4", 64 << 20) as directory:
        made = FullHome(directory, pool_path, socket_path)
        build(made.vms, made.pool)
        yield made
        made.close()


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in DONE_WITHOUT_ROOM])
def test_what_makes_something_is_refused_and_leaves_nothing(home: FullHome, operation: str) -> None:
    before = observe(home.vms, home.pool)
    home.fill()
    with pytest.raises(PoolFull, match=f"the file system below {home.path.parent} is full: make room there"):
        OPERATIONS[operation](home.vms)
    assert observe(home.vms, home.pool) == before
    home.check()
    home.make_room()
    OPERATIONS[operation](home.vms)
    home.check()


@pytest.mark.parametrize("operation", DONE_WITHOUT_ROOM)
@pytest.mark.parametrize("reopened", [False, True], ids=["running", "started again"])
def test_what_frees_space_or_ends_what_was_begun_is_done(home: FullHome, operation: str, reopened: bool) -> None:
    home.fill()
    if reopened:
        home.close_control()
        home.fill()
        home.open()
    OPERATIONS[operation](home.vms)
    home.check()


def test_an_import_ends_without_room(home: FullHome) -> None:
    begun = home.vms.begin_import("web", "more", MEBIBYTE, create=True)
    home.fill()
    with pytest.raises(PoolFull):
        home.vms.finish_import(begun.id)
    home.vms.abort_import(begun.id)
    home.check()


def test_a_control_plane_that_was_killed_starts_without_room(home: FullHome) -> None:
    before = observe(home.vms, home.pool)
    home.fill()
    home.close_control()

    def work(_say: Say) -> None:
        def die(step: str) -> None:
            if step == "delete_snapshot:applied":
                os._exit(DIED_AS_TOLD)

        catalog = Catalog(home.path, DEFAULT_RESERVE)
        vms = VMs(catalog, EngineClient(home.socket_path), clock=Clock(), at_step=die)
        vms.delete_snapshot("web", "s1")

    child = Child(work)
    assert child.wait() == DIED_AS_TOLD
    child.close()
    home.fill()
    home.open()
    home.vms.reconcile()
    del before["web"]["snapshots"]["s1"]
    assert observe(home.vms, home.pool) == before
    home.vms.delete_vm("web")
    home.check()


def in_parts(catalog: Catalog, count: int, work: Callable[[int], None]) -> None:
    for first in range(0, count, 500):
        with catalog.transaction():
            for number in range(first, first + 500):
                work(number)


def test_a_vm_of_10000_snapshots_is_deleted_without_room() -> None:
    with mounted("ext4", 64 << 20) as directory:
        catalog = Catalog(directory / "catalog.db", DEFAULT_RESERVE)
        with catalog.transaction():
            vm = catalog.insert_vm(UUID, "web", NOW)

        def take(number: int) -> None:
            snapshot = catalog.insert_snapshot(vm, f"s{number}", NOW, number)
            for disk in (0, 1):
                catalog.put_snapshot_disk(snapshot, f"disk{disk}", 2 * number + disk, 512)

        in_parts(catalog, 10_000, take)
        catalog.require_room()
        take_all_room(directory / "foreign")
        with catalog.transaction():
            intent = catalog.insert_intent("delete_vm", {"object_ids": list(range(20_000))})
        with catalog.transaction():
            catalog.delete_vm(vm)
            catalog.delete_intent(intent)
        assert catalog.snapshot_count() == 0
        catalog.close()


def test_any_number_of_deletes_goes_on_without_room_and_after_reopening() -> None:
    with mounted("ext4", 64 << 20) as directory:
        catalog = Catalog(directory / "catalog.db", DEFAULT_RESERVE)
        with catalog.transaction():
            vm = catalog.insert_vm(UUID, "web", NOW)
        in_parts(catalog, 2000, lambda number: catalog.insert_snapshot(vm, f"s{number}", NOW, number) and None)
        catalog.require_room()
        for _ in range(2):
            take_all_room(directory / "foreign")
            for snapshot in catalog.snapshots()[:1000]:
                with catalog.transaction():
                    intent = catalog.insert_intent("delete_snapshot", {"object_ids": [1] * 1000})
                with catalog.transaction():
                    catalog.delete_snapshot(snapshot.id)
                    catalog.delete_intent(intent)
            catalog.close()
            take_all_room(directory / "foreign")
            catalog = Catalog(directory / "catalog.db", DEFAULT_RESERVE)
        assert catalog.snapshots() == []
        with pytest.raises(PoolFull), catalog.transaction():
            catalog.insert_vm(OTHER_UUID, "large", NOW, config="x" * (16 << 20))
        os.unlink(directory / "foreign")
        with catalog.transaction(grows=True):
            catalog.insert_vm(OTHER_UUID, "large", NOW, config="x" * (16 << 20))
        catalog.close()
