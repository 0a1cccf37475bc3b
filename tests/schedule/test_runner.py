"""Rounds of schedules: what is due is taken once, whatever goes away in between; what expired goes, what is kept stays."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from blockdev import errors
from blockdev.clock import monotonic_seconds
from blockdev.schedule.retention import Kept, expired
from blockdev.schedule.runner import PER_SECOND_MAX, Round, Scheduler
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.names import UNFINISHED
from blockdev.vmmap.service import VMs
from tests.schedule.conftest import Home

HOUR, DAY = 3600.0, 86400.0
HOURLY = {"at": "hourly :05", "keep_seconds": 3 * 3600, "zone": "Europe/Zurich"}


@pytest.fixture
def web(home: Home) -> Home:
    """One VM with one schedule, seen for the first time."""
    home.vms.create_vm("web", [("root", 1 << 20), ("data", 1 << 20)])
    home.schedules.put(None, "hourly", HOURLY)
    assert home.scheduler.round() == Round(0, 0, 0)
    return home


def test_a_run_that_is_due_is_taken_once_with_its_terms(web: Home) -> None:
    web.now += 6 * 60
    assert web.scheduler.round() == Round(1, 0, 0)
    assert web.scheduler.round() == Round(0, 0, 0)
    [snapshot] = web.vms.list_snapshots("web")
    assert snapshot.name == "hourly-20280101-0105"  # in Zurich
    assert (snapshot.origin, snapshot.schedule, snapshot.asked, snapshot.consistency) == (
        *("schedule", "hourly"),
        *("crash", "crash"),
    )
    assert snapshot.expires == to_text(web.now + 3 * HOUR)
    assert len(snapshot.disks) == 2


def test_what_was_missed_is_caught_up_once(web: Home) -> None:
    web.now += 10 * DAY + 600
    web.start_control_plane()
    assert web.scheduler.round() == Round(1, 0, 0)
    [snapshot] = web.vms.list_snapshots("web")
    assert snapshot.name == "hourly-20280111-0105"
    assert web.scheduler.round().taken == 0


def test_a_vm_whose_images_are_still_imported_is_not_snapshotted_before_it_is_whole(web: Home) -> None:
    web.vms.set_description("web", f"{UNFINISHED}: its images are being imported")
    web.now += 2 * HOUR
    assert web.scheduler.round().taken == 0
    web.vms.set_description("web", "")
    web.now += HOUR
    assert web.scheduler.round().taken == 1


def test_a_run_waits_for_the_engine(web: Home) -> None:
    web.now += HOUR
    web.stop_engine()
    with pytest.raises(errors.Unavailable):
        web.scheduler.round()
    web.now += 5 * HOUR
    with pytest.raises(errors.Unavailable):
        web.scheduler.round()
    web.start_engine()
    assert web.scheduler.round().taken == 1
    assert web.scheduler.round().taken == 0


@pytest.mark.parametrize("step", ["intended", "applied", "finished"])
def test_a_run_is_not_repeated_when_the_control_plane_dies_in_it(web: Home, step: str) -> None:
    class Died(BaseException):
        pass

    def die(at: str) -> None:
        if at == f"create_snapshot:{step}":
            raise Died

    web.now += HOUR
    web.vms = VMs(web.catalog, web.client, clock=lambda: web.now, at_step=die)
    dying = Scheduler(web.vms, web.catalog, web.schedules, lambda: web.now, wait=lambda _seconds: None)
    with pytest.raises(Died):
        dying.round()
    web.start_control_plane()
    web.vms.reconcile()
    web.scheduler.round()
    assert web.snapshots("web") == ["hourly-20280101-0105"]


def test_an_hour_that_comes_twice_has_two_snapshots_of_different_names(home: Home) -> None:
    home.now = datetime(2028, 10, 28, 23, 50, tzinfo=UTC).timestamp()
    home.vms.create_vm("web", [("root", 1 << 20)])
    home.schedules.put(None, "hourly", HOURLY)
    home.scheduler.round()
    for _ in range(3):
        home.now += HOUR
        home.scheduler.round()
    assert home.snapshots("web") == ["hourly-20281029-0205", "hourly-20281029-0205-2", "hourly-20281029-0305"]


def test_runs_of_many_vms_are_spread_in_time_and_not_in_the_order_of_their_names(home: Home) -> None:
    names = [f"vm-{number:02}" for number in range(12)]
    for name in names:
        home.vms.create_vm(name, [("root", 1 << 20)])
    home.schedules.put(None, "hourly", HOURLY)
    begins: list[float] = []
    home.scheduler = Scheduler(
        *(home.vms, home.catalog, home.schedules, lambda: home.now),
        wait=lambda seconds: begins.append(monotonic_seconds() + seconds),
    )
    home.scheduler.round()
    orders = []
    for _ in range(2):
        begins.clear()
        home.now += HOUR
        begun = monotonic_seconds()
        assert home.scheduler.round().taken == len(names)
        assert all(begin - begun >= number / PER_SECOND_MAX - 1e-6 for number, begin in enumerate(begins))
        assert len(begins) == len(names)
        newest = {row.lsn: row.vm_id for row in home.catalog.snapshots()}
        orders.append([newest[lsn] for lsn in sorted(newest)][-len(names) :])
    assert orders[0] == orders[1] != sorted(orders[0])


def test_a_vm_without_disks_and_one_without_schedules_are_left_alone(web: Home) -> None:
    web.vms.create_vm("empty", [])
    assert not web.schedules.preview("empty", DAY).runs and web.schedules.preview("web", DAY).runs
    web.vms.create_vm("bare", [("root", 1 << 20)])
    web.schedules.replace("bare", [])
    web.now += DAY
    assert web.scheduler.round() == Round(1, 0, 0)
    web.now += DAY
    assert web.scheduler.round() == Round(1, 0, 1)
    assert web.snapshots("bare") == []
    assert not web.catalog.events(None, ["error", "warning"], None, 10)


def test_over_the_cap_a_run_fails_says_so_once_and_keeps_the_newest(web: Home) -> None:
    web.schedules.set_cap(1)
    web.now += HOUR
    assert web.scheduler.round().taken == 1
    for _ in range(5):
        web.now += HOUR
        assert web.scheduler.round() == Round(0, 1, 0)
    [kept] = web.snapshots("web")
    [event] = web.catalog.events("web", ["error"], None, 10)
    assert "schedule cap" in event.message and event.kind == "schedule"
    web.schedules.set_cap(2)
    web.now += HOUR
    assert web.scheduler.round() == Round(1, 0, 1)  # now there is a newer one
    assert kept not in web.snapshots("web") and len(web.snapshots("web")) == 1


@pytest.mark.parametrize("change", [{"at": "hourly :10"}, {"zone": "Asia/Kathmandu"}])
def test_the_last_good_one_of_a_failing_schedule_stays_when_its_times_are_changed(web: Home, change: dict[str, Any]) -> None:
    web.schedules.set_cap(1)
    web.now += HOUR
    web.scheduler.round()
    [kept] = web.snapshots("web")
    web.now += 5 * HOUR
    assert web.scheduler.round() == Round(0, 1, 0)
    web.schedules.put(None, "hourly", change)
    assert web.scheduler.round() == Round(0, 0, 0)
    web.schedules.put("web", "hourly", {"at": "daily 03:00"})  # a set of its own
    assert web.scheduler.round() == Round(0, 0, 0) and web.snapshots("web") == [kept]
    web.schedules.set_cap(2)
    web.now += DAY
    assert web.scheduler.round() == Round(1, 0, 1)


def test_a_schedule_that_goes_while_it_fails_keeps_nothing(web: Home) -> None:
    web.now += HOUR
    web.scheduler.round()
    web.schedules.set_cap(1)
    web.now += DAY
    web.scheduler = Scheduler(
        *(web.vms, web.catalog, web.schedules, lambda: web.now),
        wait=lambda _seconds: web.schedules.replace(None, []) and None,
    )
    assert web.scheduler.round() == Round(0, 1, 1)
    assert web.snapshots("web") == [] and web.catalog.schedule_runs() == []


def test_a_run_by_hand_says_that_a_failing_schedule_works_again(web: Home) -> None:
    web.schedules.set_cap(1)
    for _ in range(3):
        web.now += HOUR
        web.scheduler.round()
    web.schedules.set_cap(9)
    web.scheduler.run_now("web", "hourly")
    web.scheduler.run_now("web", "hourly")
    [event] = web.catalog.events("web", ["info"], None, 10)
    assert event.message == "schedule hourly works again after 2 failed runs"


def test_a_vm_that_lacks_a_disk_fails_says_so_and_keeps_its_newest(web: Home) -> None:
    web.now += HOUR
    assert web.scheduler.round() == Round(1, 0, 0)
    [kept] = web.snapshots("web")
    web.client.delete([web.pool.find("web/root").id])
    web.vms.reconcile()
    for _ in range(5):
        web.now += HOUR
        assert web.scheduler.round() == Round(0, 1, 0)
    assert web.snapshots("web") == [kept]
    [event] = web.catalog.events("web", ["error"], None, 10)
    assert "missing from the pool" in event.message and event.kind == "schedule"


def test_locked_and_attached_snapshots_outlive_their_time(web: Home) -> None:
    web.now += HOUR
    web.scheduler.round()
    [first] = web.snapshots("web")
    web.vms.change_snapshot("web", first, {"locked_until": to_text(web.now + 2 * DAY)})
    web.schedules.replace("web", [])
    web.now += DAY
    assert web.scheduler.round() == Round(0, 0, 0)
    for change in (lambda: web.vms.delete_snapshot("web", first, force=True), lambda: web.vms.delete_vm("web", force=True)):
        with pytest.raises(errors.Locked, match="until"):
            change()
    web.now += 2 * DAY
    token = web.attachments.attach(web.pool.find(f"web/root@{first}"), "a backup")
    assert web.scheduler.round() == Round(0, 0, 0)
    web.attachments.detach(token)
    assert web.scheduler.round() == Round(0, 0, 1)
    assert web.snapshots("web") == []


def test_a_schedule_that_changed_has_missed_nothing(web: Home) -> None:
    web.now += 12 * HOUR  # 13:00 in Zurich
    web.schedules.put(None, "hourly", {"at": "daily 12:00"})
    web.now += 60
    assert web.scheduler.round().taken == 0
    web.schedules.put(None, "hourly", {"at": "daily 13:30"})
    web.now += HOUR
    assert web.scheduler.round().taken == 1  # it was due after the change, however late anybody looks
    web.schedules.replace(None, [])
    web.now += 10 * DAY
    web.scheduler.round()
    web.schedules.put(None, "hourly", {"at": "daily 12:00", "keep_seconds": 3600})
    assert web.scheduler.round().taken == 0
    web.schedules.put(None, "hourly", {"keep_seconds": 7200})  # the same times
    web.now += DAY
    assert web.scheduler.round().taken == 1


def test_run_now_takes_one_as_the_schedule_would(web: Home) -> None:
    name = web.scheduler.run_now("web", "hourly")
    assert web.vms.show_snapshot("web", name).schedule == "hourly"
    with pytest.raises(errors.NotFound):
        web.scheduler.run_now("web", "never")


def test_a_vm_that_follows_the_default_again_has_what_is_the_default_then(web: Home) -> None:
    own = web.schedules.put("web", "daily", {"at": "daily 02:30", "keep_seconds": 86400})
    assert own.own and [one.name for one in own.schedules] == ["hourly", "daily"]
    web.schedules.replace(None, [])
    assert [one.name for one in web.schedules.show("web").schedules] == ["hourly", "daily"]
    assert web.schedules.remove("web", "hourly").schedules[0].name == "daily"
    back = web.schedules.replace("web", None)
    assert (back.own, back.schedules) == (False, [])


def test_a_preview_is_what_is_taken(web: Home) -> None:
    web.schedules.put(None, "daily", {"at": "daily 02:30", "keep_seconds": 2 * 86400, "zone": "Europe/Zurich"})
    web.scheduler.round()
    preview = web.schedules.preview("web", 3 * DAY)
    most = 0
    end = web.now + 3 * DAY
    while web.now < end:
        web.now += 60
        web.scheduler.round()
        most = max(most, len(web.snapshots("web")))
    assert len(preview.runs) == 72 + 3
    assert preview.kept_at_most in (most, most + 1)  # the last minute of one and the first of another
    held = [run.due for run in preview.runs if run.kept_until > to_text(web.now)]
    assert len(held) == len(web.snapshots("web"))


@pytest.mark.parametrize(("cap", "by_hand", "fails"), [(3, 0, True), (4, 0, False), (4, 2, True), (6, 2, False)])
def test_a_preview_says_when_the_first_run_fails_at_the_cap(web: Home, cap: int, by_hand: int, fails: bool) -> None:
    web.schedules.put(None, "hourly", {"keep_seconds": 3 * 3600 + 60})
    for _ in range(by_hand):
        web.now += 60
        web.scheduler.run_now("web", "hourly")
    web.schedules.set_cap(cap)
    foretold, failed = web.schedules.preview("web", 6 * HOUR).cap_reached, None
    for _minute in range(6 * 60):
        web.now += 60
        if web.scheduler.round().failed and failed is None:
            failed = to_text(web.now)
    assert foretold == failed and (failed is not None) == fails


def test_a_preview_says_what_goes_where(web: Home) -> None:
    web.schedules.put(None, "far", {"at": "daily 01:00", "keep_seconds": 3600, "keep_remote_seconds": 7200})
    web.schedules.put(None, "near", {"at": "daily 02:00", "keep_seconds": 3600, "replicate": False})
    alone = web.schedules.preview("web", DAY)
    assert {one.kept_remote_seconds for one in alone.runs} == {None} and alone.paths == []
    with web.catalog.transaction():
        path = web.catalog.insert_path("south", "host", 1, "key", 3, "{}", to_text(web.now))
        web.catalog.put_protection(web.catalog.vms()[0].id, path, None, None, 0, to_text(web.now))
    web.schedules.set_cap(7)
    found = web.schedules.preview("web", DAY)
    there = {one.schedule: one.kept_remote_seconds for one in found.runs}
    assert there == {"hourly": 3 * 3600, "far": 7200, "near": None}
    assert (found.paths, found.scheduled_snapshots_max, found.kept_at_most) == (["south"], 7, alone.kept_at_most)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"at": "sometimes"}, "not a time"),
        ({"keep_seconds": 5}, "kept for"),
        ({"zone": "Mars"}, "time zone"),
        ({"consistency": "perfect"}, "consistency"),
        ({"if_not_frozen": "cry"}, "frozen"),
        ({"freeze_seconds_max": 0}, "frozen for 1 to 60 s"),
        ({"freeze_seconds_max": 61}, "frozen for 1 to 60 s"),
    ],
)
def test_a_schedule_that_cannot_be_changes_nothing(web: Home, change: dict[str, Any], words: str) -> None:
    before = web.schedules.show()
    with pytest.raises(errors.InvalidArgument, match=words):
        web.schedules.put(None, "hourly", change)
    with pytest.raises(errors.InvalidArgument):
        web.schedules.put(None, "other", {})
    assert web.schedules.show() == before


def test_a_fourth_schedule_is_refused(web: Home) -> None:
    for name in ("b", "c"):
        web.schedules.put("web", name, HOURLY)
    with pytest.raises(errors.InvalidArgument, match="3 schedules"):
        web.schedules.put("web", "d", HOURLY)


def test_retention_keeps_what_is_locked_needed_or_the_last_good_one() -> None:
    snapshots = [
        Kept("a", "hourly", 1, expires=10),
        Kept("b", "hourly", 2, expires=10, locked_until=100),
        Kept("c", None, 3, expires=10),
        Kept("d", None, 4),
        Kept("e", "daily", 5, expires=10, is_held=True),
        Kept("f", "hourly", 6, expires=10),
        Kept("g", "daily", 7, expires=30),
    ]
    assert [one.name for one in expired(snapshots, 20, [])] == ["a", "c", "f"]
    assert [one.name for one in expired(snapshots, 20, ["hourly"])] == ["a", "c"]
    assert [one.name for one in expired(snapshots, 100, ["daily"])] == ["a", "b", "c", "f"]
    assert expired(snapshots, 9.9, []) == []
