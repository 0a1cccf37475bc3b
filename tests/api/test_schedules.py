"""Schedules, terms of snapshots and events over REST; the scheduler of a real blockdevd."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from blockdev.schedule.times import local_zone
from tests.cli.served import Home, until

EVERY_MINUTE = {"at": "cron * * * * *", "keep_seconds": 3600}
DAILY = {"name": "daily", "at": "daily 02:30", "keep_seconds": 172800, "zone": "Europe/Zurich"}
UNSAID = {"consistency": "crash", "if_not_frozen": "crash", "replicate": True, "keep_remote_seconds": None, "freeze_seconds_max": 10}


@pytest.fixture
def vm(rest: httpx.Client) -> Iterator[str]:
    assert rest.post("/vms", json={"name": "timed", "disks": [{"name": "root", "size_bytes": 1 << 20}]}).status_code == 201
    yield "timed"
    for snapshot in rest.get("/vms/timed/snapshots").json()["snapshots"]:
        rest.patch(f"/vms/timed/snapshots/{snapshot['name']}", json={"locked_until": None})
    assert rest.delete("/vms/timed", params={"force": True}).status_code == 200
    assert rest.put("/schedules", json={"schedules": []}).status_code == 200


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def from_now(**parts: float) -> str:
    return (datetime.now(UTC) + timedelta(**parts)).isoformat()


def test_a_vm_has_the_default_schedules_until_it_has_its_own(rest: httpx.Client, vm: str) -> None:
    assert ok(rest.get("/schedules")) == {"vm": None, "own": False, "schedules": []}
    default = ok(rest.put("/schedules", json={"schedules": [DAILY]}))["schedules"]
    assert default == [{**DAILY, **UNSAID}]
    assert ok(rest.get(f"/vms/{vm}/schedules")) == {"vm": vm, "own": False, "schedules": default}
    change = {"at": "hourly :05", "keep_seconds": 10800}
    own = ok(rest.patch(f"/vms/{vm}/schedules/hourly", json=change))
    hourly = {"name": "hourly", **change, "zone": local_zone(), **UNSAID}
    assert own == {"vm": vm, "own": True, "schedules": [*default, hourly]}
    change = {"consistency": "vm", "if_not_frozen": "fail", "replicate": False, "keep_remote_seconds": 60, "zone": "UTC", "freeze_seconds_max": 60}
    changed = ok(rest.patch(f"/vms/{vm}/schedules/hourly", json=change))["schedules"][1]
    assert changed == {**hourly, **change}
    changed = ok(rest.patch(f"/vms/{vm}/schedules/hourly", json={"keep_remote_seconds": None}))["schedules"][1]
    assert changed == {**hourly, **change, "keep_remote_seconds": None}
    assert ok(rest.delete(f"/vms/{vm}/schedules/daily"))["schedules"] == [changed]
    assert ok(rest.put(f"/vms/{vm}/schedules", json={"schedules": []})) == {"vm": vm, "own": True, "schedules": []}
    assert ok(rest.delete(f"/vms/{vm}/schedules")) == {"vm": vm, "own": False, "schedules": default}
    assert ok(rest.patch("/schedules/daily", json={"keep_seconds": 60}))["schedules"][0]["keep_seconds"] == 60
    assert ok(rest.delete("/schedules/daily")) == {"vm": None, "own": False, "schedules": []}


def test_a_preview_says_what_will_be_there(rest: httpx.Client, vm: str) -> None:
    body = {"schedules": [{"name": "h", "at": "hourly :05", "keep_seconds": 3 * 3600}]}
    rest.put(f"/vms/{vm}/schedules", json=body)
    found = ok(rest.get(f"/vms/{vm}/schedules/preview", params={"seconds": 86400}))
    assert set(found) == {"vm", "until", "runs", "kept_at_most", "scheduled_snapshots_max", "cap_reached", "paths"}
    assert (found["vm"], len(found["runs"]), found["kept_at_most"]) == (vm, 24, 3)
    assert (found["scheduled_snapshots_max"], found["cap_reached"], found["paths"]) == (256, None, [])
    assert all(run["due"][14:16] == "05" and run["schedule"] == "h" for run in found["runs"])
    assert set(found["runs"][0]) == {"schedule", "due", "kept_until", "consistency", "kept_remote_seconds"}


def test_a_schedule_can_be_run_now_and_says_what_it_achieved(rest: httpx.Client, vm: str) -> None:
    rest.put(f"/vms/{vm}/schedules", json={"schedules": [{**DAILY, "consistency": "vm"}]})
    answer = rest.post(f"/vms/{vm}/schedules/daily/run")
    taken = answer.json()
    assert answer.status_code == 201 and taken == ok(rest.get(f"/vms/{vm}/snapshots/{taken['name']}"))
    assert (taken["origin"], taken["schedule"], taken["asked"], taken["consistency"]) == ("schedule", "daily", "vm", "crash")
    kept = datetime.fromisoformat(taken["expires"]) - datetime.fromisoformat(taken["created"])
    assert abs(kept - timedelta(days=2)) < timedelta(seconds=30)
    rest.patch(f"/vms/{vm}/schedules/daily", json={"if_not_frozen": "fail"})
    refused = rest.post(f"/vms/{vm}/schedules/daily/run")
    assert refused.status_code == 400 and "guest agent" in refused.json()["error"]["message"]
    assert rest.post(f"/vms/{vm}/schedules/none/run").status_code == 404


def test_the_cap_stops_schedules_and_nobody_else(rest: httpx.Client, vm: str) -> None:
    assert ok(rest.get("/schedule-settings")) == {"scheduled_snapshots_max": 256}
    assert ok(rest.patch("/schedule-settings", json={"scheduled_snapshots_max": 1})) == {"scheduled_snapshots_max": 1}
    try:
        rest.put(f"/vms/{vm}/schedules", json={"schedules": [DAILY]})
        assert rest.post(f"/vms/{vm}/schedules/daily/run").status_code == 201
        refused = rest.post(f"/vms/{vm}/schedules/daily/run")
        assert refused.status_code == 409 and "cap is 1" in refused.json()["error"]["message"]
        assert rest.post(f"/vms/{vm}/snapshots", json={}).status_code == 201
    finally:
        rest.patch("/schedule-settings", json={"scheduled_snapshots_max": 256})


def test_a_snapshot_is_kept_and_locked_as_it_was_said(rest: httpx.Client, vm: str) -> None:
    body = {"name": "s", "keep_seconds": 3600, "locked_until": "2999-01-01T02:00:00+02:00"}
    made = ok(rest.post(f"/vms/{vm}/snapshots", json=body))
    assert made["locked_until"] == "2999-01-01T00:00:00.000Z" and made["created"] < made["expires"] < from_now(hours=2)
    for path in (f"/vms/{vm}/snapshots/s", f"/vms/{vm}"):
        refused = rest.delete(path, params={"force": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "locked")
    address = f"/vms/{vm}/snapshots/s"
    changed = ok(rest.patch(address, json={"description": "kept", "expires": None}))
    assert (changed["description"], changed["expires"], changed["locked_until"]) == ("kept", None, made["locked_until"])
    later = from_now(days=1)
    changed = ok(rest.patch(address, json={"expires": later, "locked_until": None}))
    assert changed["locked_until"] is None and changed["expires"][:19] == later[:19]
    assert ok(rest.get(f"/vms/{vm}/snapshots"))["snapshots"][0]["expires"] == changed["expires"]
    assert ok(rest.patch(address, json={"description": None, "expires": None}))["description"] == "kept"
    assert rest.delete(address).status_code == 200


def test_blockdevd_takes_what_is_due_lets_go_of_what_expired_and_notes_what_failed(
    home: Home, rest: httpx.Client, vm: str
) -> None:
    """Of two schedules of every minute one wants a frozen guest, and else no snapshot."""
    rest.post(f"/vms/{vm}/snapshots", json={"name": "short"})
    assert ok(rest.patch(f"/vms/{vm}/snapshots/short", json={"expires": from_now(seconds=5)}))["name"] == "short"
    strict = {"name": "strict", **EVERY_MINUTE, "consistency": "vm", "if_not_frozen": "fail"}
    rest.put(f"/vms/{vm}/schedules", json={"schedules": [{"name": "minutely", **EVERY_MINUTE}, strict]})

    def snapshots() -> list[dict[str, Any]]:
        return [one for one in ok(rest.get(f"/vms/{vm}/snapshots"))["snapshots"] if one["name"] != "short"]

    taken = until(snapshots, "the first run", 200)
    assert {(one["origin"], one["schedule"]) for one in taken} == {("schedule", "minutely")}
    asked = {"vm": vm, "level": "error"}
    [event] = until(lambda: ok(rest.get("/events", params=asked))["events"], "the event")
    assert set(event) == {"id", "time", "level", "kind", "vm", "message"}
    assert (event["level"], event["kind"], event["vm"]) == ("error", "schedule", vm)
    assert "strict failed" in event["message"] and "guest agent" in event["message"]
    assert ok(rest.get("/events", params={"count": 1000}))["events"][0] == event
    assert ok(rest.get("/events", params={**asked, "before": event["id"]}))["events"] == []
    assert ok(rest.get("/events", params={"vm": "another"}))["events"] == []
    assert home.json("events", "--vm", vm)["events"][0] == event
    assert event["message"] in home("events", "--level", "error", "--count", "5")
    until(lambda: rest.get(f"/vms/{vm}/snapshots/short").status_code == 404, "the expiry")
    assert taken[0]["name"] in [one["name"] for one in snapshots()]


def test_a_home_has_the_shipped_schedules_unless_it_was_made_without(fresh_home: Home) -> None:
    fresh_home("init", "--capacity", "1G")
    fresh_home.serve()
    shipped = fresh_home.json("schedule", "default")["schedules"]
    assert [(one["name"], one["at"], one["keep_seconds"]) for one in shipped] == [
        ("hourly", "hourly :05", 3 * 3600),
        ("daily", "daily 02:30", 2 * 86400),
        ("weekly", "weekly sat 07:30", 8 * 86400),
    ]
    assert {one["zone"] for one in shipped} == {local_zone()}
    fresh_home("schedule", "default", "--none")
    fresh_home.stop()
    fresh_home.serve()
    assert fresh_home.json("schedule", "show")["schedules"] == [], "they are shipped once"


@pytest.fixture
def fresh_home() -> Iterator[Home]:
    """Not yet initialised."""
    made = Home()
    yield made
    made.close()
