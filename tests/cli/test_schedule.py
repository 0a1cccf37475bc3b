"""blockdevctl schedule, snapshot lock and keep, events: what they do, what they say, and the JSON that scripts rely on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import get_args

import pytest

from blockdev.api.schemas import EventLevel
from blockdev.cli import events, snapshot, values
from blockdev.errors import InvalidArgument
from blockdev.vmmap.model import Consistency, IfNotFrozen
from blockdev.written import show_period
from tests.cli.served import Home

DAY = 86400
DAILY = ("--at", "daily 02:30 mon-fri", "--keep", "3d", "--zone", "Europe/Zurich")


@pytest.fixture
def vm(home: Home, name: str) -> str:
    home("vm", "create", name, "--disk", "root=1M")
    return name


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("90s", 90, "90s"),
        ("30m", 1800, "30m"),
        ("12h", 12 * 3600, "12h"),
        ("3d", 3 * DAY, "3d"),
        ("2w", 14 * DAY, "2w"),
        (" 7 D ", 7 * DAY, "1w"),
        ("60s", 60, "1m"),
        ("36h", 36 * 3600, "36h"),
        ("36600d", 36600 * DAY, "36600d"),
    ],
)
def test_durations_are_read_and_shown_exactly(text: str, seconds: int, shown: str) -> None:
    assert values.parse_duration(text) == values.parse_duration_or_forever(text) == seconds
    assert show_period(seconds) == shown


@pytest.mark.parametrize("text", ["", "3", "d", "0d", "-3d", "3.5d", "3y", "3d12h", "forever", "3 days", "٣d", "99999w", "9" * 50 + "d"])
def test_what_is_no_duration_says_how_one_is_written(text: str) -> None:
    with pytest.raises(InvalidArgument, match="3d|hundred years"):
        values.parse_duration(text)


def test_forever_is_a_duration_for_those_who_keep() -> None:
    assert values.parse_duration_or_forever("Forever") == values.FOREVER == 0


def test_the_choices_are_those_of_the_model() -> None:
    assert get_args(Consistency) == snapshot.CONSISTENCIES
    assert get_args(IfNotFrozen) == snapshot.IF_NOT_FROZEN
    assert get_args(EventLevel) == events.LEVELS


def test_a_vm_gets_schedules_of_its_own_and_the_default_ones_again(fresh: Home) -> None:
    fresh.serve()
    fresh("vm", "create", "web", "--disk", "root=1M")
    assert "there are no default schedules: no snapshots are taken" in fresh("schedule", "show")
    assert "VM web has no schedules, as there are no default ones" in fresh("schedule", "show", "web")
    default = fresh.json("schedule", "default", "nightly", "--at", "daily 02:30", "--keep", "2w", "--zone", "UTC")
    [nightly] = default["schedules"]
    assert nightly == {
        "name": "nightly", "at": "daily 02:30", "keep_seconds": 14 * DAY, "zone": "UTC", "consistency": "crash",
        "if_not_frozen": "crash", "replicate": True, "keep_remote_seconds": None,
        "freeze_seconds_max": 10,
    }
    assert fresh.json("schedule", "default") == fresh.json("schedule", "show") == default
    told = fresh("schedule", "show", "web").splitlines()
    assert told[0] == "VM web has the default schedules:"
    assert told[1].split("  ")[0] == "SCHEDULE" and told[2].split() == ["nightly", "daily", "02:30", "UTC", "2w", "crash", "yes"]
    options = ("--consistency", "vm", "--if-not-frozen", "fail", "--freeze-limit", "30s", "--replicate", "--keep-remote", "52w")
    own = fresh.json("schedule", "set", "web", "workdays", *DAILY, *options)
    assert own["own"] and own["schedules"][0] == nightly
    assert own["schedules"][1] == {
        "name": "workdays", "at": "daily 02:30 mon-fri", "keep_seconds": 3 * DAY, "zone": "Europe/Zurich",
        "consistency": "vm", "if_not_frozen": "fail", "replicate": True, "keep_remote_seconds": 364 * DAY,
        "freeze_seconds_max": 30,
    }
    told = fresh("schedule", "show", "web")
    assert "VM web has schedules of its own:" in told and "vm within 30s, else fail" in told and "yes, kept for 52w" in told
    changed = fresh.json("schedule", "set", "web", "workdays", "--no-replicate", "--keep", "90s")["schedules"][1]
    assert (changed["replicate"], changed["keep_seconds"], changed["at"]) == (False, 90, "daily 02:30 mon-fri")
    assert fresh("schedule", "show", "web").splitlines()[-1].endswith("  no")
    again = fresh.json("schedule", "set", "web", "workdays", "--replicate", "--keep-remote", "same")["schedules"][1]
    assert (again["replicate"], again["keep_remote_seconds"]) == (True, None)
    assert len(fresh.json("schedule", "set", "web", "nightly", "--remove")["schedules"]) == 1
    assert fresh.json("schedule", "set", "web", "--none") == {"vm": "web", "own": True, "schedules": []}
    assert "VM web has no schedules: no snapshots are taken" in fresh("schedule", "show", "web")
    assert fresh.json("schedule", "set", "web", "--default") == {"vm": "web", "own": False, "schedules": [nightly]}
    assert fresh.json("schedule", "default", "nightly", "--remove")["schedules"] == []
    fresh("schedule", "default", "nightly", *DAILY)
    assert fresh.json("schedule", "default", "--none")["schedules"] == []


def test_a_preview_lists_what_will_be_taken(home: Home, vm: str) -> None:
    home("schedule", "set", vm, "hourly", "--at", "hourly :05", "--keep", "3h")
    found = home.json("schedule", "preview", vm, "--for", "2d")
    assert len(found["runs"]) == 48 and found["kept_at_most"] == 3
    told = home("schedule", "preview", vm).splitlines()
    assert told[0].split() == ["DUE", "SCHEDULE", "KEPT", "UNTIL", "CONSISTENCY"] and len(told) == 26
    assert told[-1].startswith("24 snapshots until ") and told[-1].endswith("at most 3 of them at one time")
    home("schedule", "set", vm, "hourly", "--keep", "30d")
    told = home("schedule", "preview", vm, "--for", "30d").splitlines()
    assert told[-1].startswith("from ") and "the cap allows, 256, and runs fail: " in told[-1] and "schedule cap" in told[-1]


@pytest.mark.parametrize("option", ["--keep", "--keep-remote"])
def test_less_than_a_minute_is_refused_in_the_words_of_who_types_it(home: Home, vm: str, option: str) -> None:
    refused = home.run("schedule", "set", vm, "short", "--at", "hourly :05", "--keep", "1m", option, "59s")
    assert refused.status == 2 and "59s is too short: a snapshot is kept for a minute at least" in refused.error


def test_a_run_by_hand_is_listed_as_its_schedules(home: Home, vm: str) -> None:
    home("schedule", "set", vm, "workdays", *DAILY, "--consistency", "vm")
    said = home("schedule", "run", vm, "workdays")
    [taken] = home.json("snapshot", "list", vm)["snapshots"]
    assert said.startswith(f"took snapshot {vm}@{taken['name']} of disk root (1 MiB)")
    assert "crash (asked for: vm)" in said and f"kept until {taken['expires']}" in said
    assert (taken["schedule"], taken["origin"], taken["asked"], taken["consistency"]) == ("workdays", "schedule", "vm", "crash")
    rows = [line.split("  ") for line in home("snapshot", "list", vm).splitlines()]
    assert [cell.strip() for cell in rows[0] if cell][-3:] == ["TAKEN BY", "EXPIRES", "LOCKED UNTIL"]
    assert [cell.strip() for cell in rows[1] if cell][-3:] == ["schedule workdays", taken["expires"], "-"]
    shown = home("snapshot", "show", f"{vm}@{taken['name']}").splitlines()
    assert "consistency:   crash (asked for: vm)" in shown and "taken by:      schedule workdays" in shown
    assert f"expires:       {taken['expires']}" in shown and "locked until:  not locked" in shown


def test_a_locked_snapshot_stays_until_it_is_released(home: Home, vm: str) -> None:
    made = home.json("snapshot", "create", vm, "--name", "s", "--keep", "3d", "--lock", "7d")
    begun = datetime.fromisoformat(made["created"])
    for field, days in (("expires", 3), ("locked_until", 7)):
        assert abs(datetime.fromisoformat(made[field]) - begun - timedelta(days=days)) < timedelta(seconds=30)
    for command in (["snapshot", "delete", f"{vm}@s"], ["vm", "delete", vm]):
        refused = home.run(*command, "--yes", "--force")
        assert refused.status == 16 and f"{vm}@s is locked until {made['locked_until']}" in refused.error
    refused = home.run("snapshot", "lock", f"{vm}@s", "--for", "1d")
    assert refused.status == 16 and "--release" in refused.error
    locked = home.json("snapshot", "lock", f"{vm}@s", "--for", "30d")
    assert locked["locked_until"] > made["locked_until"] and locked["expires"] == made["expires"]
    assert home("snapshot", "lock", f"{vm}@s", "--release") == f"unlocked snapshot {vm}@s\n"
    assert home.json("snapshot", "show", f"{vm}@s")["locked_until"] is None
    home("snapshot", "delete", f"{vm}@s", "--yes")


def test_how_long_a_snapshot_is_kept_can_be_changed(home: Home, vm: str) -> None:
    made = home.json("snapshot", "create", vm, "--name", "s")
    assert made["expires"] is None and "expires:       never" in home("snapshot", "show", f"{vm}@s")
    said = home("snapshot", "keep", f"{vm}@s", "30d")
    expires = home.json("snapshot", "show", f"{vm}@s")["expires"]
    assert said == f"snapshot {vm}@s is kept for 30d, until {expires}\n"
    assert home("snapshot", "keep", f"{vm}@s", "forever") == f"snapshot {vm}@s is kept until somebody deletes it\n"
    assert home.json("snapshot", "keep", f"{vm}@s", "1w")["expires"] is not None


def test_a_snapshot_that_needs_a_frozen_guest_is_not_taken_without(home: Home, vm: str) -> None:
    refused = home.run("snapshot", "create", vm, "--consistency", "vm", "--if-not-frozen", "fail")
    assert refused.status == 2 and "guest agent" in refused.error
    assert "crash (asked for: vm): the guest was not frozen" in home("snapshot", "create", vm, "--consistency", "vm")
    [taken] = home.json("snapshot", "list", vm)["snapshots"]
    assert (taken["asked"], taken["consistency"], taken["frozen_ms"]) == ("vm", "crash", None)


def test_the_cap_is_shown_and_changed(fresh: Home) -> None:
    fresh.serve()
    assert fresh("schedule", "cap") == "a VM may have 256 snapshots of schedules\n"
    assert fresh.json("schedule", "cap", "9") == {"scheduled_snapshots_max": 9}
    fresh.stop()
    fresh.serve()
    assert fresh.json("schedule", "cap") == {"scheduled_snapshots_max": 9}
    assert fresh("events") == "nothing was noted\n" and fresh.json("events") == {"events": [], "next": None}


def test_a_home_without_schedules_that_cannot_be_made_leaves_nothing(fresh: Home) -> None:
    fresh.path = fresh.above / "small"
    fresh.path.mkdir()
    assert fresh.run("init", "--no-schedules", "--capacity", "1M").status != 0
    assert list(fresh.path.iterdir()) == []
