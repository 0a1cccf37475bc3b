"""Replication over REST: peers, paths, pages, and what the history keeps.  Two homes that really replicate: tests/replicate/test_cli.py."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from blockdev.api.routes.protections import list_samples
from blockdev.api.routes.replication import LEVELS, list_replications, worst
from blockdev.replicate.model import Replicated, Sample

_numbers = itertools.count(1)


def new_key() -> str:
    """A public key that nobody else has, of a home that there is not."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + next(_numbers).to_bytes(32, "big")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code < 300, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    return str(error["message"])


@pytest.fixture
def vm(rest: httpx.Client) -> Iterator[str]:
    name = f"replicated-{next(_numbers)}"
    ok(rest.post("/vms", json={"name": name, "disks": [{"name": "root", "size_bytes": 1 << 20}]}))
    yield name
    rest.delete(f"/vms/{name}", params={"force": True})


def test_peers_are_added_changed_and_removed(rest: httpx.Client) -> None:
    key = new_key()
    made = ok(rest.post("/replication/peers", json={"name": "east", "key": f"{key} a comment", "vms": ["web-*"]}))
    assert made["key"] == key and made["fingerprint"].startswith("SHA256:") and made["space_bytes"] is None
    refused(rest.post("/replication/peers", json={"name": "east", "key": new_key()}), 409, "already_exists")
    refused(rest.post("/replication/peers", json={"name": "west", "key": key}), 409, "already_exists")
    refused(rest.post("/replication/peers", json={"name": "west", "key": "ssh-rsa AAAA"}), 400, "invalid_argument")
    refused(rest.post("/replication/peers", json={"name": "west", "key": new_key(), "vms": ["a/b"]}), 422, "invalid_argument")
    changed = ok(rest.patch("/replication/peers/east", json={"space_bytes": 1 << 30}))
    assert (changed["space_bytes"], changed["vms"]) == (1 << 30, ["web-*"])
    assert ok(rest.patch("/replication/peers/east", json={"space_bytes": None, "vms": []}))["space_bytes"] is None
    refused(rest.patch("/replication/peers/east", json={}), 400, "invalid_argument")
    assert ok(rest.get("/replication/peers/east"))["vms"] == []
    assert ok(rest.delete("/replication/peers/east"))["name"] == "east"
    refused(rest.get("/replication/peers/east"), 404, "not_found")


def test_peers_and_paths_come_in_pages(rest: httpx.Client) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        ok(rest.post("/replication/peers", json={"name": name, "key": new_key()}))
        ok(rest.post("/replication/paths", json={"name": name, "host": "192.0.2.1", "key": new_key()}))
    for things in ("peers", "paths"):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            answer = ok(rest.get(f"/replication/{things}", params={"count": 2, "after": after}))
            found += [one["name"] for one in answer[things]]
            assert len(answer[things]) <= 2
            after = answer["next"]
        assert found == names
        for name in names:
            ok(rest.delete(f"/replication/{things}/{name}"))


def test_a_path_is_made_by_a_key_or_a_code_and_throttled(rest: httpx.Client) -> None:
    refused(rest.post("/replication/paths", json={"name": "p", "host": "h"}), 400, "invalid_argument")
    refused(rest.post("/replication/paths", json={"name": "p", "host": "h", "key": new_key(), "code": "x"}), 400, "invalid_argument")
    refused(rest.post("/replication/paths", json={"name": "p", "host": "a b", "key": new_key()}), 400, "invalid_argument")
    made = ok(rest.post("/replication/paths", json={"name": "p", "host": "2001:db8::7", "key": new_key(), "level": 0}))
    assert (made["port"], made["level"], made["protected_count"]) == (10810, 0, 0)
    throttle = {"rate_bytes": 10**7, "zone": "Europe/Zurich", "windows": [{"at": "mon-fri 08:00-18:00", "rate_bytes": None}]}
    assert ok(rest.patch("/replication/paths/p", json={"throttle": throttle}))["throttle"] == throttle
    local = ok(rest.patch("/replication/paths/p", json={"throttle": {"windows": []}, "level": 9}))
    assert local["throttle"]["zone"] and local["throttle"]["rate_bytes"] is None and local["level"] == 9
    for wrong in ({"rate_bytes": 1}, {"zone": "Mars/Base"}, {"windows": [{"at": "noon", "rate_bytes": None}]}):
        refused(rest.patch("/replication/paths/p", json={"throttle": wrong}), 400, "invalid_argument")
    refused(rest.patch("/replication/paths/p", json={}), 400, "invalid_argument")
    moved = ok(rest.patch("/replication/paths/p", json={"host": "192.0.2.9"}))
    assert (moved["host"], moved["port"], moved["level"]) == ("192.0.2.9", 10810, 9)
    refused(rest.patch("/replication/paths/p", json={"port": 5}), 400, "invalid_argument")
    refused(rest.patch("/replication/paths/none", json={"level": 1}), 404, "not_found")
    ok(rest.delete("/replication/paths/p"))


def test_an_invitation_is_told_once_and_the_history_has_no_code(rest: httpx.Client) -> None:
    made = ok(rest.put("/replication/invitations/guest", json={"vms": ["web"], "seconds": 60}))
    assert set(made) == {"peer", "code", "expires"} and made["peer"] == "guest"
    secret = "THIS-WAS-NEVER-A-CODE"
    failed = rest.post("/replication/paths", json={"name": "q", "host": "127.0.0.1", "port": 1, "code": secret})
    assert failed.status_code >= 400 and secret not in failed.text
    told = rest.get("/jobs", params={"count": 20}).text + rest.get("/events").text
    assert made["code"] not in told and secret not in told
    jobs = {one["kind"]: one for one in reversed(ok(rest.get("/jobs", params={"count": 20}))["jobs"])}
    assert jobs["peer.invite"]["subject"] == "guest" and jobs["path.add"]["subject"] == "q"


def test_protections_are_made_and_told_by_their_vm(rest: httpx.Client, vm: str) -> None:
    ok(rest.post("/replication/paths", json={"name": "far", "host": "127.0.0.1", "port": 9, "key": new_key()}))
    made = ok(rest.put(f"/vms/{vm}/protections/far", json={"rpo_seconds": 7200, "keep_seconds": 86400}))
    assert (made["rpo_seconds"], made["keep_seconds"], made["paused"]) == (7200, 86400, False)
    changed = ok(rest.put(f"/vms/{vm}/protections/far", json={"rpo_seconds": None}))
    assert (changed["rpo_seconds"], changed["keep_seconds"]) == (None, 86400), "what is not said stays"
    [held] = ok(rest.post(f"/vms/{vm}/replication/pause", json={}))["protections"]
    assert held["paused"] and ok(rest.get(f"/vms/{vm}/protections"))["protections"] == [held]
    [one] = ok(rest.get(f"/vms/{vm}/replication"))["replications"]
    assert (one["direction"], one["way"], one["state"], one["snapshots_remaining"]) == ("sent", "far", "paused", 1)
    [same] = ok(rest.get("/replication/status", params={"vm": vm, "state": "paused", "way": "far"}))["replications"]
    assert same["vm_uuid"] == one["vm_uuid"]
    assert ok(rest.get("/replication/status", params={"vm": vm, "state": "running"})) == {"replications": [], "level": "ok", "next": None}
    assert ok(rest.get("/replication/transfers", params={"vm": vm})) == {"transfers": [], "next": None}
    refused(rest.delete("/replication/paths/far"), 409, "busy")
    refused(rest.put(f"/vms/{vm}/protections/none", json={}), 404, "not_found")
    refused(rest.post(f"/vms/{vm}/replication/promote", json={}), 400, "invalid_argument")
    assert ok(rest.delete(f"/vms/{vm}/protections", params={"path": "far"}))["protections"][0]["path"] == "far"
    refused(rest.delete(f"/vms/{vm}/protections"), 404, "not_found")
    ok(rest.delete("/replication/paths/far"))
    kinds = [job["kind"] for job in ok(rest.get("/jobs", params={"subject": vm, "kind": "replicate"}))["jobs"]]
    assert {"replicate.protect", "replicate.pause", "replicate.promote", "replicate.unprotect"} <= set(kinds)


def replicated(vm: str, way: str, level: str) -> Replicated:
    return Replicated(vm, "0", "sent", way, "up to date", level)  # type: ignore[arg-type]


def test_the_level_of_a_page_is_the_worst_of_all_that_match() -> None:
    every = [replicated(vm, way, LEVELS[number % 3]) for number, (vm, way) in enumerate(itertools.product("cab", "zy"))]
    services: Any = SimpleNamespace(replication=SimpleNamespace(status=lambda: every))
    seen, after = [], None
    while True:
        page = list_replications(services, count=4, after=after, level="ok")
        assert page.level == "error"
        seen += [(one.vm, one.way) for one in page.replications]
        after = page.next
        if after is None:
            break
    assert seen == sorted(itertools.product("cab", "zy"))
    bad = list_replications(services, count=10, level="error")
    assert {one.level for one in bad.replications} == {"error"} and len(bad.replications) == 2
    assert worst([]) == "ok" and worst(every[:2]) == "warning"


@pytest.mark.parametrize("count", range(1, 9))
def test_pages_of_samples_neither_repeat_nor_lose_any(count: int) -> None:
    every = [Sample(f"2026-11-28T00:0{minute}:00Z", "sent", way, 1, 1, None, None) for minute in range(4) for way in "ab"]
    replication = SimpleNamespace(samples=lambda vm, since: [one for one in every if one.time >= since])
    services: Any = SimpleNamespace(replication=replication)
    seen: list[Sample] = []
    since: str | None = "2026-11-28T00:00:00Z"
    while since is not None:
        page = list_samples("web", services, since, count)
        assert page.samples
        seen += page.samples
        since = page.next
    assert seen == every
