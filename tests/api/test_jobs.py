"""The history over REST: each operation is a job, whoever asked and however it ended; events that a follower waits for."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockdev.api.history import RESULT_CHARACTERS_MAX, bounded
from blockdev.api.recording import kept, kind_of, subject_of
from tests.cli.served import Home, until
from tests.engine.content import distinct_blocks

DISK = {"name": "root", "size_bytes": 1 << 20}


@pytest.fixture
def own() -> Iterator[Home]:
    """A served home of this test alone."""
    made = Home()
    made.init()
    made.serve()
    yield made
    made.close()


def jobs(rest: httpx.Client, **asked: Any) -> list[dict[str, Any]]:
    answer = rest.get("/jobs", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["jobs"]
    return found


def test_every_operation_is_a_job_with_who_asked_and_how_it_ended(rest: httpx.Client) -> None:
    rest.post("/vms", json={"name": "done", "disks": [DISK], "config": "secret of the guest"})
    rest.post("/vms/done/snapshots", json={"name": "s1"})
    rest.post("/vms/done/snapshots", json={"name": "s1"})
    rest.post("/vms/done/disks", json={"name": "data", "size_bytes": 4096})
    rest.patch("/vms/done/disks/data", json={"size_bytes": 8192})
    rest.put("/vms/done/config", json={"config": "another secret"})
    rest.post("/vms/done/clones", json={"snapshot": "s1", "count": 2, "prefix": "done"})
    rest.post("/vms/done/restore", json={"snapshot": "s1"})
    rest.delete("/vms/done/disks/data")
    rest.post("/vms/done/disks/x/import", json={"image": {"path": "/none"}})
    rest.put("/vms/done/schedules", json={"schedules": []})
    rest.delete("/vms/done/snapshots/s1")
    rest.delete("/vms/none")
    assert rest.post("/vms/done/snapshots", json={"surprise": 1}).status_code == 422
    assert rest.post("/nowhere", json={}).status_code == 404
    found = jobs(rest, count=13)
    assert [(one["kind"], one["subject"], one["state"]) for one in reversed(found)] == [
        ("vm.create", "done", "done"),
        ("snapshot.create", "done@s1", "done"),
        ("snapshot.create", "done@s1", "failed"),
        ("disk.add", "done/data", "done"),
        ("disk.resize", "done/data", "done"),
        ("vm.config", "done", "done"),
        ("vm.clone", "done", "done"),
        ("vm.restore", "done", "done"),
        ("disk.remove", "done/data", "done"),
        ("disk.import", "done/x", "failed"),
        ("schedule.replace", "done", "done"),
        ("snapshot.delete", "done@s1", "done"),
        ("vm.delete", "none", "failed"),
    ]
    assert {one["caller"] for one in found} == {"owner"}
    assert all(one["created"] <= one["finished"] and len(one["id"]) == 16 for one in found)
    assert found[0]["error"]["code"] == "not_found" and found[0]["result"] is None
    assert found[6]["result"] == {"vms": ["done-1", "done-2"]}
    assert found[-2]["result"]["name"] == "s1" and found[-2]["fraction"] == 1
    assert "secret" not in json.dumps(found)
    assert rest.get(f"/jobs/{found[3]['id']}").json() == found[3]
    assert rest.delete(f"/jobs/{found[3]['id']}").json() == found[3], "it has ended"
    told = rest.get("/events", params={"vm": "done", "kind": "vm"}).json()["events"]
    assert [one["message"].split(" by ")[0] for one in told] == ["disk done/data was removed", "VM done was restored to s1"]
    for name in ("done", "done-1", "done-2"):
        assert rest.delete(f"/vms/{name}", params={"force": True}).status_code == 200


def test_who_asked_over_tcp_is_known_by_the_name_of_the_token_and_no_token_gets_in(
    rest: httpx.Client, callers: dict[str, httpx.Client], tmp_path: Path
) -> None:
    assert callers["operator"].post("/vms", json={"name": "asked", "disks": [DISK]}).status_code == 201
    job = callers["operator"].post("/pool/check").json()
    assert (job["kind"], job["caller"]) == ("pool.check", "a-operator")
    assert callers["viewer"].delete("/vms/asked").status_code == 403
    made = callers["admin"].post("/tokens", json={"name": "by-admin", "role": "viewer"}).json()
    assert callers["admin"].delete("/tokens/by-admin").status_code == 200
    assert callers["admin"].delete("/vms/asked").status_code == 200
    found = jobs(rest, count=6)
    assert [(one["kind"], one["subject"], one["caller"], one["state"]) for one in found if one["kind"] != "pool.check"] == [
        ("vm.delete", "asked", "a-admin", "done"),
        ("token.remove", "by-admin", "a-admin", "done"),
        ("token.add", "by-admin", "a-admin", "done"),
        ("vm.delete", "asked", "a-viewer", "failed"),
        ("vm.create", "asked", "a-operator", "done"),
    ]
    assert jobs(callers["viewer"], caller="a-operator", kind="pool")[0]["kind"] == "pool.check"
    assert made["token"] not in json.dumps(found)
    [told] = rest.get("/events", params={"vm": "asked", "kind": "vm"}).json()["events"]
    assert told["message"] == "VM asked was deleted by a-admin"


def test_a_restore_beside_is_no_event_for_the_vm(rest: httpx.Client) -> None:
    rest.post("/vms", json={"name": "left", "disks": [DISK]})
    rest.post("/vms/left/snapshots", json={"name": "s"})
    assert rest.post("/vms/left/restore", json={"snapshot": "s", "beside": "left-2"}).status_code == 200
    assert jobs(rest, kind="vm.restore", subject="left")[0]["result"]["beside"] == "left-2"
    assert rest.get("/events", params={"vm": "left", "kind": "vm"}).json()["events"] == []
    for name in ("left", "left-2"):
        rest.delete(f"/vms/{name}")


def test_the_history_comes_in_pages_and_by_what_is_asked_for(rest: httpx.Client) -> None:
    for number in range(5):
        rest.delete(f"/vms/paged-{number}")
    pages, after = [], None
    while len(pages) < 3:
        answer = rest.get("/jobs", params={"kind": "vm.delete", "count": 2, **({"after": after} if after else {})}).json()
        pages.append([one["subject"] for one in answer["jobs"]])
        after = answer["next"]
    assert pages[:2] == [["paged-4", "paged-3"], ["paged-2", "paged-1"]] and pages[2][0] == "paged-0"
    assert [one["subject"] for one in jobs(rest, subject="paged-2")] == ["paged-2"]
    assert jobs(rest, caller="nobody") == jobs(rest, state="queued") == jobs(rest, subject="paged") == []
    assert rest.get("/jobs", params={"kind": "vm.delete", "subject": "paged-0"}).json()["next"] is None


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=9999999999999999999", "state=over", "count=0", "count=1001"])
def test_a_question_that_makes_no_sense_is_refused(rest: httpx.Client, query: str) -> None:
    answer = rest.get(f"/jobs?{query}")
    assert answer.status_code in (400, 422) and answer.json()["error"]["code"] == "invalid_argument"


def test_a_long_job_is_one_job_that_can_be_found_while_it_runs(rest: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(distinct_blocks(5 << 20, 1024))
    image = {"path": str(tmp_path / "image"), "format": "raw"}
    job = rest.post("/vms", json={"name": "content", "disks": [{"name": "root", "image": image}]}).json()
    until(lambda: rest.get(f"/jobs/{job['id']}").json()["state"] == "done", "content")
    started = rest.post("/pool/compact", json={"rate_bytes": 1}).json()
    assert (started["kind"], started["subject"], started["caller"]) == ("pool.compact", "pool", "owner")
    running = until(lambda: jobs(rest, state="running", kind="pool"), "the job to be listed")
    assert [one["id"] for one in running] == [started["id"]]
    rest.delete(f"/jobs/{started['id']}")
    until(lambda: rest.get(f"/jobs/{started['id']}").json()["state"] == "cancelled", "its end")
    past = until(lambda: [one for one in jobs(rest, state="cancelled") if one["id"] == started["id"]], "the history")
    assert past[0]["finished"] and [one["id"] for one in jobs(rest, kind="pool.compact")].count(started["id"]) == 1
    assert jobs(rest, subject="content")[0]["result"]["disks"][0]["name"] == "root"
    rest.delete("/vms/content")


def test_a_job_whose_control_plane_died_is_interrupted_and_one_event(own: Home, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(distinct_blocks(3 << 20, 1024))
    own("vm", "create", "web", "--image", f"root={tmp_path / 'image'}", "--format", "raw")
    with own.rest() as rest:
        job = rest.post("/pool/compact", json={"rate_bytes": 1}).json()
        until(lambda: jobs(rest, state="running"), "the row")
        os.kill(own.control_pid(), signal.SIGKILL)
    until(lambda: own.run("vm", "list").status == 0, "another control plane")
    with own.rest() as rest:
        found = rest.get(f"/jobs/{job['id']}").json()
        assert found["state"] == "interrupted" and found["finished"] and found["error"]["code"] == "unavailable"
        assert "taken back" in found["error"]["message"]
        [event] = rest.get("/events", params={"kind": "job"}).json()["events"]
        assert (event["level"], event["vm"]) == ("warning", None) and "pool.compact of pool was interrupted" in event["message"]
        assert [one["id"] for one in jobs(rest, state="interrupted")] == [job["id"]]
        assert own.run("job", "watch", job["id"]).status == 11
        rest.delete("/vms/web")
    own.stop()
    own.serve()
    with own.rest() as rest:
        assert [one["kind"] for one in jobs(rest)][0] == "vm.delete", "written at the clean end"
        assert len(rest.get("/events", params={"kind": "job"}).json()["events"]) == 1


def test_a_follower_waits_for_what_comes_and_misses_nothing(rest: httpx.Client) -> None:
    newest = rest.get("/events", params={"count": 1}).json()["events"]
    after = newest[0]["id"] if newest else 0
    began = time.monotonic()
    nothing = rest.get("/events", params={"after": after, "wait_seconds": 0.3}).json()
    assert nothing == {"events": [], "next": str(after)} and time.monotonic() - began >= 0.3
    answers: list[Any] = []
    asked = {"after": after, "wait_seconds": 20, "kind": "vm"}
    waiting = threading.Thread(target=lambda: answers.append(rest.get("/events", params=asked).json()))
    waiting.start()
    for name in ("heard-1", "heard-2"):
        rest.post("/vms", json={"name": name, "disks": [DISK]})
        rest.delete(f"/vms/{name}")
    waiting.join(120)
    [first] = answers
    following = rest.get("/events", params={**asked, "after": first["next"], "wait_seconds": 0}).json()
    told = [one["vm"] for one in (*first["events"], *following["events"])]
    assert told == ["heard-1", "heard-2"]
    older = rest.get("/events", params={"count": 1, "kind": "vm"}).json()
    assert older["events"][0]["vm"] == "heard-2" and older["next"] == str(older["events"][0]["id"])


def test_locks_that_kept_something_and_locks_that_were_released_are_told(rest: httpx.Client) -> None:
    rest.post("/vms", json={"name": "held", "disks": [DISK]})
    rest.post("/vms/held/snapshots", json={"name": "s", "locked_until": "2999-01-01T00:00:00Z"})
    for _ in range(3):
        assert rest.delete("/vms/held/snapshots/s").status_code == 409
    assert rest.delete("/vms/held").status_code == 409
    assert rest.patch("/vms/held/snapshots/s", json={"locked_until": None}).status_code == 200
    assert rest.delete("/vms/held").status_code == 200
    told = rest.get("/events", params={"vm": "held"}).json()["events"]
    assert [(one["kind"], one["level"]) for one in told] == [
        *(("vm", "info"), ("snapshot", "warning"), ("snapshot", "warning"), ("snapshot", "warning")),
    ]
    assert "was released" in told[1]["message"] and "vm.delete of held by owner was refused" in told[2]["message"]


def test_a_long_job_that_fails_is_an_event(rest: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "image.qcow2").write_bytes(b"QFI\xfb" + bytes(200))
    image = {"path": str(tmp_path / "image.qcow2"), "format": "qcow2"}
    answer = rest.post("/vms", json={"name": "failing", "disks": [{"name": "root", "image": image}]})
    if answer.status_code == 202:
        until(lambda: rest.get(f"/jobs/{answer.json()['id']}").json()["state"] == "failed", "its end")
        [event] = rest.get("/events", params={"vm": "failing"}).json()["events"]
        assert (event["kind"], event["level"]) == ("job", "error")
    [job] = jobs(rest, subject="failing")
    assert (job["kind"], job["state"]) == ("vm.create", "failed")


def test_kinds_and_subjects_follow_from_routes() -> None:
    assert kind_of("create_snapshot") == "snapshot.create" and kind_of("replace_vm_schedules") == "schedule.replace"
    assert kind_of("set_config") == "vm.config" and kind_of("add_token") == "token.add" and kind_of("x") == "operation.x"
    assert subject_of("snapshot.create", {"vm": "web"}, {"name": "s1"}) == "web@s1"
    assert subject_of("snapshot.create", {"vm": "web"}, {}) == "web"
    assert subject_of("disk.import", {"vm": "web", "disk": "root"}, {"name": "root"}) == "web/root"
    assert subject_of("token.add", {}, {"name": "ci"}) == "ci" and subject_of("pool.change", {}, {}) == "pool"
    assert subject_of("token.remove", {"name": "ci"}, {}) == "ci"


def test_what_history_keeps_of_results_is_little_and_no_secret() -> None:
    assert kept({"name": "ci", "token": "bdv_secret", "role": "admin", "config": "x"}) == {"name": "ci"}
    assert kept({"vms": [{"name": f"c-{number}"} for number in range(500)]})["count"] == 500
    long = {"findings": [{"what": "x" * 1000, "key": "k"}] * 500, "read_bytes": 7, "config": "c", "token": "t"}
    found = json.loads(bounded(long))
    assert len(bounded(long)) <= RESULT_CHARACTERS_MAX + 100 and found["read_bytes"] == 7 and found["shortened"]
    assert not {"config", "token"} & set(found)
    assert json.loads(bounded({"size_bytes": 1, "disks": ["a"]})) == {"size_bytes": 1, "disks": ["a"]}
    assert json.loads(bounded("text")) == {"value": "text"}
