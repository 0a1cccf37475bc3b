"""What a snapshot has beyond its moment: how long it is kept, until when it is locked, what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blockdev.engine.client import EngineClient
from blockdev.errors import Busy, InvalidArgument, Locked, NotFound
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.model import Terms
from blockdev.vmmap.service import VMs
from blockdev.vmmap.snapshots import SCHEDULED_CAP
from tests.vmmap.world import LATER, MEBIBYTE, Clock, check_agreed

HOURLY = Terms("schedule", schedule="hourly", due="2026-11-22T12:05:00.000Z")


@pytest.fixture
def web(vms: VMs) -> VMs:
    vms.create_vm("web", [("root", MEBIBYTE), ("data", MEBIBYTE)])
    return vms


def names(vms: VMs, vm: str = "web") -> list[str]:
    return [one.name for one in vms.list_snapshots(vm)]


def id_of(catalog: Catalog, name: str) -> int:
    [row] = [row for row in catalog.snapshots() if row.name == name]
    return row.id


def test_a_snapshot_has_no_terms_but_those_that_were_said(web: VMs, clock: Clock) -> None:
    plain = web.create_snapshot("web", "plain")
    assert (plain.origin, plain.asked, plain.consistency, plain.frozen_ms) == ("manual", "crash", "crash", None)
    assert (plain.expires, plain.locked_until, plain.schedule) == (None, None, None)
    begun = clock.moment
    kept = web.create_snapshot("web", "kept", terms=Terms(locked_until=LATER), keep_seconds=3600)
    assert to_text(begun + 3600) < (kept.expires or "") < to_text(begun + 3610)
    assert kept.locked_until == LATER
    assert web.show_snapshot("web", "kept").expires == kept.expires == web.list_snapshots("web")[1].expires


def test_what_is_changed_is_changed_and_the_rest_stays(web: VMs) -> None:
    web.create_snapshot("web", "s", "first", Terms(expires=LATER))
    changed = web.change_snapshot("web", "s", {"locked_until": LATER})
    assert (changed.description, changed.expires, changed.locked_until) == ("first", LATER, LATER)
    changed = web.change_snapshot("web", "s", {"description": "second", "expires": None})
    assert (changed.description, changed.expires, changed.locked_until) == ("second", None, LATER)
    assert web.change_snapshot("web", "s", {"locked_until": None}).locked_until is None
    with pytest.raises(InvalidArgument, match="4096"):
        web.change_snapshot("web", "s", {"description": "x" * 5000})
    with pytest.raises(NotFound):
        web.change_snapshot("web", "none", {"expires": None})


def test_a_locked_snapshot_is_deleted_by_nobody_until_its_time(web: VMs, catalog: Catalog, clock: Clock) -> None:
    web.create_snapshot("web", "s", terms=Terms(locked_until=to_text(clock.moment + 1000)))
    web.create_snapshot("web", "free")
    for force in (False, True):
        with pytest.raises(Locked, match="web@s is locked until"):
            web.delete_snapshot("web", "s", force)
        with pytest.raises(Locked, match="web@s is locked until"):
            web.delete_vm("web", force)
    assert web.expire_snapshots([id_of(catalog, "s"), id_of(catalog, "free")]) == ["web@free"]
    web.rename_vm("web", "www")
    web.restore("www", "s")
    web.remove_disk("www", "data")
    with pytest.raises(Locked, match="www@s"):
        web.delete_vm("www")
    assert names(web, "www")[0] == "s" and len(web.show_snapshot("www", "s").disks) == 2
    clock.moment += 1000
    web.delete_snapshot("www", "s")


def test_an_unlocked_snapshot_goes(web: VMs) -> None:
    web.create_snapshot("web", "s", terms=Terms(locked_until=LATER))
    web.change_snapshot("web", "s", {"locked_until": None})
    web.delete_vm("web")
    assert web.list_vms() == []


def test_a_lock_and_a_time_outlive_a_restart_and_an_agreement(web: VMs, catalog: Catalog, client: EngineClient) -> None:
    web.create_snapshot("web", "s", terms=Terms(expires=LATER, locked_until=LATER))
    again = VMs(catalog, client, clock=Clock())
    again.reconcile()
    with pytest.raises(Locked):
        again.delete_snapshot("web", "s")
    assert again.show_snapshot("web", "s").expires == LATER


def test_a_lost_catalog_costs_the_terms_but_no_snapshot(web: VMs, client: EngineClient, tmp_path: Path) -> None:
    web.create_snapshot("web", "s", terms=HOURLY._replace(expires=LATER, locked_until=LATER))
    empty = Catalog(tmp_path / "another.db")
    adopted = VMs(empty, client, clock=Clock())
    adopted.reconcile()
    [snapshot] = adopted.list_snapshots("web")
    assert (snapshot.name, snapshot.origin, snapshot.expires, snapshot.locked_until) == ("s", "schedule", None, None)
    empty.close()


def test_what_expired_goes_and_what_is_in_use_stays(
    web: VMs, catalog: Catalog, client: EngineClient, attach: Callable[..., None]
) -> None:
    for name in ("a", "b", "c", "d"):
        web.create_snapshot("web", name)
    attach("web/data@b")
    gone = web.expire_snapshots([id_of(catalog, name) for name in ("a", "b", "c")] + [999])
    assert gone == ["web@a", "web@c"] and names(web) == ["b", "d"]
    assert web.expire_snapshots([999]) == []
    check_agreed(web, catalog, client)


def test_snapshots_of_several_vms_expire_together(web: VMs, catalog: Catalog, client: EngineClient) -> None:
    web.create_vm("db", [("root", MEBIBYTE)])
    for vm in ("web", "db"):
        web.create_snapshot(vm, f"of-{vm}")
    assert sorted(web.expire_snapshots([row.id for row in catalog.snapshots()])) == ["db@of-db", "web@of-web"]
    check_agreed(web, catalog, client)


def test_the_cap_counts_the_snapshots_of_schedules_of_one_vm(web: VMs, catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.set_setting(SCHEDULED_CAP, "2")
    web.create_vm("db", [("root", MEBIBYTE)])
    web.create_snapshot("web", "mine")
    for number in range(2):
        web.create_snapshot("web", f"h{number}", terms=HOURLY)
    with pytest.raises(Busy, match="2 snapshots of schedules, and the cap is 2"):
        web.create_snapshot("web", "h2", terms=HOURLY)
    web.create_snapshot("web", "mine-too")
    web.create_snapshot("db", "h0", terms=HOURLY)
    web.delete_snapshot("web", "h0")
    web.create_snapshot("web", "h2", terms=HOURLY)


def test_a_run_is_noted_with_its_snapshot(web: VMs, catalog: Catalog) -> None:
    web.create_snapshot("web", "s", terms=HOURLY)
    assert [(run.schedule, run.handled, run.failures) for run in catalog.schedule_runs()] == [("hourly", HOURLY.due, 0)]
    assert web.show_snapshot("web", "s").schedule == "hourly"
    web.delete_vm("web")
    assert catalog.schedule_runs() == []
