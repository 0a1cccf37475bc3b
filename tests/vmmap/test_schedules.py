"""What the catalog keeps of schedules: how far each is, as long as there is one; events, as long as they are new."""

from __future__ import annotations

import threading

from blockdev.errors import Busy
from blockdev.schedule.runner import Round
from blockdev.vmmap.catalog import Catalog, RunRow
from blockdev.vmmap.catalog_events import EVENTS_MAX
from tests.schedule.conftest import Home, home

__all__ = ["home"]
HOUR, DAY = 3600.0, 86400.0
HOURLY = {"at": "hourly :05", "keep_seconds": 3 * 3600, "zone": "UTC"}


def runs(catalog: Catalog) -> list[tuple[int, str]]:
    return sorted((row.vm_id, row.schedule) for row in catalog.schedule_runs())


def test_changes_of_one_set_at_once_are_all_there(home: Home) -> None:
    home.schedules.put(None, "hourly", HOURLY)
    changes = [{"zone": "Europe/Zurich"}, {"keep_seconds": 7200}, {"replicate": False}, {"consistency": "vm"}, {"at": "hourly :10"}]
    start = threading.Barrier(len(changes))

    def change(one: dict[str, object]) -> None:
        start.wait()
        home.schedules.put(None, "hourly", one)

    threads = [threading.Thread(target=change, args=(one,)) for one in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [hourly] = home.schedules.show().schedules
    assert {field: value for one in changes for field, value in one.items()}.items() <= vars(hourly).items()


def test_how_far_a_schedule_was_goes_with_it(home: Home) -> None:
    for vm in ("own", "none", "default"):
        home.vms.create_vm(vm, [("root", 1 << 20)])
    ids = {row.name: row.id for row in home.catalog.vms()}
    home.schedules.put(None, "hourly", HOURLY)
    home.schedules.put(None, "daily", {**HOURLY, "at": "daily 02:30"})
    home.schedules.remove("own", "daily")
    home.scheduler.round()
    both = [(ids[vm], schedule) for vm in ("none", "default") for schedule in ("daily", "hourly")]
    assert runs(home.catalog) == sorted([(ids["own"], "hourly"), *both])
    home.schedules.replace("none", [])
    home.schedules.remove(None, "hourly")
    assert runs(home.catalog) == sorted([(ids["own"], "hourly"), (ids["default"], "daily")])
    home.schedules.replace("own", None)
    assert runs(home.catalog) == [(ids["default"], "daily")]
    home.vms.delete_vm("default")
    assert runs(home.catalog) == []


def test_a_schedule_that_is_given_back_begins_anew(home: Home) -> None:
    home.vms.create_vm("web", [("root", 1 << 20)])
    home.schedules.put(None, "hourly", HOURLY)
    home.scheduler.round()
    home.schedules.replace("web", [])
    home.now += 30 * DAY
    home.schedules.replace("web", None)
    assert home.scheduler.round() == Round(0, 0, 0), "what it did not have to do is not caught up"
    home.now += HOUR
    assert home.scheduler.round().taken == 1


def test_what_a_schedule_kept_as_it_failed_goes_when_the_schedule_does(home: Home) -> None:
    home.vms.create_vm("web", [("root", 1 << 20)])
    home.schedules.put(None, "hourly", HOURLY)
    home.scheduler.round()
    home.now += HOUR
    assert home.scheduler.round().taken == 1
    home.schedules.set_cap(1)
    home.now += HOUR
    assert home.scheduler.round().failed == 1
    home.now += DAY
    home.scheduler.round()
    assert len(home.snapshots("web")) == 1, "the last good one stays while its schedule fails"
    home.schedules.remove(None, "hourly")
    home.scheduler.round()
    assert home.snapshots("web") == []


def test_the_oldest_events_are_forgotten(catalog: Catalog) -> None:
    with catalog.transaction():
        for number in range(EVENTS_MAX + 5):
            catalog.add_event("2026-11-22T12:00:00.000Z", "info", "schedule", None, str(number))
    found = catalog.events(None, ["info"], None, EVENTS_MAX * 2)
    assert [one.message for one in found] == [str(number) for number in range(EVENTS_MAX + 4, 4, -1)]


def test_events_are_found_by_vm_level_and_place(catalog: Catalog) -> None:
    with catalog.transaction():
        for number in range(12):
            level, vm = ("info", "warning", "error")[number % 3], ("web", "db", None, "web")[number % 4]
            catalog.add_event("2026-11-22T12:00:00.000Z", level, "schedule", vm, str(number))

    def found(vm: str | None, *levels: str, before: int | None = None, count: int = 100) -> list[str]:
        return [one.message for one in catalog.events(vm, levels, before, count)]

    assert found("web", "info", "warning", "error") == ["11", "8", "7", "4", "3", "0"]
    assert found(None, "error") == ["11", "8", "5", "2"]
    assert found("db", "warning", "error") == ["5", "1"]
    newest = catalog.events(None, ["error"], None, 2)
    assert [one.message for one in newest] == ["11", "8"]
    assert found(None, "error", before=newest[-1].id, count=1) == ["5"]
    assert found("other", "info", "warning", "error") == []


def test_runs_of_a_vm_that_is_gone_are_not_kept(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.put_schedule_runs([RunRow(7, "hourly", "2026-11-22T12:00:00.000Z", 0, None)])
    assert catalog.schedule_runs() == []


def test_the_cap_holds_for_schedules_alone(home: Home) -> None:
    home.vms.create_vm("web", [("root", 1 << 20)])
    home.schedules.put("web", "hourly", HOURLY)
    home.schedules.set_cap(2)
    home.vms.create_snapshot("web", "mine")
    for _ in range(2):
        home.scheduler.run_now("web", "hourly")
    try:
        home.scheduler.run_now("web", "hourly")
        raise AssertionError("a third one")
    except Busy as error:
        assert "schedule cap" in error.message
    home.vms.create_snapshot("web", "mine-too")
    home.now += 4 * HOUR
    home.scheduler.round()
    assert len(home.snapshots("web")) == 3, "those that expired make room, but for the last one"
    home.scheduler.run_now("web", "hourly")
