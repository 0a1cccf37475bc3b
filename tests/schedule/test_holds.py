"""What replication needs does not expire, and no more than that stays; by hand everything can be deleted."""

from __future__ import annotations

import pytest

from blockdev.vmmap.holds import Rules, held_ids, queued_snapshots
from blockdev.vmmap.snapshots import SCHEDULED_CAP
from tests.schedule.conftest import Home
from tests.vmmap.receiving import FAR, begin, receive
from tests.vmmap.world import add_peer, sent_copy

DAY = 86400.0
WHEN = "2028-01-01T00:00:00.000Z"


@pytest.fixture
def web(home: Home) -> Home:
    """A VM with five snapshots that have all expired, two of them of a schedule that is not replicated."""
    vms, catalog = home.vms, home.catalog
    vms.create_vm("web", [("root", 1 << 20)])
    home.schedules.put(None, "local", {"at": "daily 23:00", "keep_seconds": 3600, "zone": "UTC", "replicate": False})
    with catalog.transaction():
        for name in ("north", "south"):
            catalog.insert_path(name, "host", 1, name, 3, "{}", WHEN)
    take(home, "a", "b")
    for name in ("c", "d"):
        terms = home.schedules.terms(home.schedules.show().schedules[0], home.now)
        vms.create_snapshot("web", name, terms=terms)
    take(home, "e")
    home.now += DAY / 4
    return home


def take(home: Home, *names: str) -> None:
    for name in names:
        home.vms.create_snapshot("web", name, keep_seconds=60.0)


def protect(home: Home, path: str, newest: str | None, first: str = "a") -> None:
    """From `first` on; the other end has all until `newest`."""
    rows = {row.name: row for row in home.catalog.snapshots()}
    with home.catalog.transaction():
        way = home.catalog.path_named(path)
        assert way is not None
        vm_id = home.catalog.vms()[0].id
        home.catalog.put_protection(vm_id, way.id, None, None, rows[first].lsn if first in rows else 0, WHEN)
        if newest is not None:
            home.catalog.note_replicated(vm_id, way.id, rows[newest].uuid, rows[newest].lsn, WHEN, WHEN)


def expire(home: Home) -> list[str]:
    """What is left."""
    home.scheduler.round()
    return home.snapshots("web")


def queued(home: Home) -> list[str]:
    [vm] = home.catalog.vms()
    [protection] = home.catalog.protections(vm.id)
    return [row.name for row in queued_snapshots(home.catalog, protection, vm, Rules(home.catalog))]


def test_without_replication_all_of_it_goes(web: Home) -> None:
    assert expire(web) == []


def test_the_newest_that_is_there_and_what_is_still_to_be_sent_stays(web: Home) -> None:
    protect(web, "north", "b")
    assert queued(web) == ["e"]
    assert expire(web) == ["b", "e"]


def test_what_has_arrived_takes_its_place(web: Home) -> None:
    protect(web, "north", "b")
    expire(web)
    protect(web, "north", "e")
    assert queued(web) == []
    assert expire(web) == ["e"]


def test_every_path_holds_its_own(web: Home) -> None:
    protect(web, "north", "a")
    protect(web, "south", "e")
    assert expire(web) == ["a", "b", "e"]


def test_what_was_there_before_it_was_protected_is_not_held(web: Home) -> None:
    protect(web, "north", None, first="e")
    assert expire(web) == ["e"]


def test_when_the_newest_was_deleted_by_hand_the_next_older_one_stays(web: Home) -> None:
    protect(web, "north", "b")
    web.vms.delete_snapshot("web", "b")
    assert expire(web) == ["a", "e"]


def test_deleting_a_base_by_hand_says_what_it_costs(web: Home) -> None:
    protect(web, "north", "b")
    protect(web, "south", "b")
    told: list[str] = []
    web.vms.events.note = lambda level, kind, vm, message: told.append(message)  # type: ignore[method-assign]
    web.vms.delete_snapshot("web", "a")
    assert told == []
    web.vms.delete_snapshot("web", "b")
    [message] = told
    assert message.startswith("web@b was deleted, the newest one of path north, path south: ")


def test_a_snapshot_of_a_schedule_that_replicates_no_more_is_held_while_it_is_the_newest_there(web: Home) -> None:
    protect(web, "north", "d")
    assert expire(web) == ["d", "e"]


def test_a_long_queue_leaves_room_for_schedules(web: Home) -> None:
    with web.catalog.transaction():
        web.catalog.set_setting(SCHEDULED_CAP, "6")
    protect(web, "north", "a")
    take(web, *(f"f{number}" for number in range(6)))
    web.now += DAY / 4
    assert queued(web) == ["b", "e", "f0", "f1", "f2", "f3", "f4", "f5"]
    assert expire(web) == ["a", "b", "f3", "f4", "f5"]


def test_the_newest_received_snapshot_stays_and_what_a_demoted_VM_had_until_the_first_comes(web: Home) -> None:
    peer = add_peer(web.catalog, "east")
    web.vms.demote("web", peer)
    held = expire(web)
    assert held[:5] == ["a", "b", "c", "d", "e"]
    [vm] = web.catalog.vms()
    [mine] = [row for row in web.catalog.snapshots(vm.id) if row.name == "e"]
    sent = receive_into(web, peer, vm.uuid, mine.uuid, "x")
    assert expire(web) == [name for name in held if name not in ("a", "b", "c", "d", "e")] + [sent]


def receive_into(home: Home, peer: int, vm_uuid: str, base_uuid: str, name: str) -> str:
    """One snapshot of a VM from its peer."""
    copy = sent_copy(1)._replace(vm_uuid=vm_uuid, name=name)
    receipt = home.vms.begin_receipt(peer, "protect", copy, [base_uuid])
    assert receipt is not None
    return home.vms.finish_receipt(receipt, home.vms.receipt_digests(receipt), keep_seconds=60.0).name


def test_received_snapshots_expire_but_for_the_newest_and_the_base_of_what_comes(home: Home) -> None:
    peer = add_peer(home.catalog, "east")
    for number in (1, 2, 3):
        receive(home.vms, home.pool, peer, number, [number - 1])
        home.vms.change_snapshot(FAR, f"far-{number}", {"expires": "2028-01-01T00:00:01.000Z"})
    home.now += 60
    begin(home.vms, peer, 4, [2, 1])
    home.scheduler.round()
    assert home.snapshots(FAR) == ["far-2", "far-3"]
    home.vms.drop_stale_receipts("2099-01-01T00:00:00.000Z")
    home.scheduler.round()
    assert home.snapshots(FAR) == ["far-3"]


def test_the_newest_that_came_stays_when_the_VM_is_promoted_until_its_peer_is_forgotten(home: Home) -> None:
    """A reverse, days later, is compared with it."""
    peer = add_peer(home.catalog, "east")
    for number in (1, 2):
        receive(home.vms, home.pool, peer, number, [number - 1])
    home.vms.promote(FAR)
    for number in (1, 2):
        home.vms.change_snapshot(FAR, f"far-{number}", {"expires": "2028-01-01T00:00:01.000Z"})
    home.vms.create_snapshot(FAR, "own", keep_seconds=60.0)
    home.now += DAY
    home.scheduler.round()
    assert home.snapshots(FAR) == ["far-2"]
    with home.catalog.transaction():
        home.catalog.delete_peer(peer)
    home.scheduler.round()
    assert home.snapshots(FAR) == []
    assert held_ids(home.catalog, home.catalog.vms()[0], Rules(home.catalog)) == set()


def test_a_received_VM_has_no_runs_of_schedules(home: Home) -> None:
    home.schedules.put(None, "hourly", {"at": "hourly :05", "keep_seconds": 3600, "zone": "UTC"})
    receive(home.vms, home.pool, add_peer(home.catalog, "east"), 1)
    home.scheduler.round()
    home.now += DAY
    assert home.scheduler.round()[:2] == (0, 0)
