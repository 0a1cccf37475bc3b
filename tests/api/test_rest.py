"""The REST API: every address answers as its OpenAPI document says, and failures have one shape."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockdev.api.schemas import Compacted
from tests.cli.served import Home, run_tool, until
from tests.engine.content import distinct_blocks

ADDRESSES = {
    ("get", "/vms"),
    ("post", "/vms"),
    ("get", "/vms/{vm}"),
    ("patch", "/vms/{vm}"),
    ("delete", "/vms/{vm}"),
    ("get", "/vms/{vm}/config"),
    ("put", "/vms/{vm}/config"),
    ("post", "/vms/{vm}/export"),
    ("post", "/vms/{vm}/clones"),
    ("post", "/vms/{vm}/restore"),
    ("post", "/vms/{vm}/disks"),
    ("patch", "/vms/{vm}/disks/{disk}"),
    ("delete", "/vms/{vm}/disks/{disk}"),
    ("post", "/vms/{vm}/disks/{disk}/import"),
    ("post", "/vms/{vm}/disks/{disk}/export"),
    ("get", "/vms/{vm}/snapshots"),
    ("post", "/vms/{vm}/snapshots"),
    ("get", "/vms/{vm}/snapshots/{snapshot}"),
    ("patch", "/vms/{vm}/snapshots/{snapshot}"),
    ("get", "/vms/{vm}/snapshots/{snapshot}/restore"),
    ("get", "/schedule-coverage"),
    ("get", "/serving"),
    ("get", "/caller"),
    ("post", "/console-codes"),
    ("delete", "/vms/{vm}/snapshots/{snapshot}"),
    ("get", "/vms/{vm}/snapshots/{snapshot}/diff"),
    ("post", "/vms/{vm}/snapshots/{snapshot}/export"),
    *(("post", f"/streams/{verb}") for verb in ("import", "inspect")),
    *((method, "/schedules") for method in ("get", "put")),
    *((method, "/schedules/{name}") for method in ("patch", "delete")),
    *((method, "/vms/{vm}/schedules") for method in ("get", "put", "delete")),
    *((method, "/vms/{vm}/schedules/{name}") for method in ("patch", "delete")),
    ("get", "/vms/{vm}/schedules/preview"),
    ("post", "/vms/{vm}/schedules/{name}/run"),
    *((method, "/schedule-settings") for method in ("get", "patch")),
    *((method, "/tokens") for method in ("get", "post")),
    ("delete", "/tokens/{name}"),
    ("get", "/events"),
    ("get", "/status"),
    ("get", "/attachments"),
    ("patch", "/pool"),
    ("get", "/pool/usage"),
    ("get", "/vms/{vm}/usage"),
    *(("get", path) for path in ("/statistics", "/pool/statistics", "/vms/{vm}/statistics", "/vms/{vm}/statistics/now")),
    ("post", "/pool/check"),
    ("post", "/pool/scrub"),
    ("post", "/pool/compact"),
    ("get", "/targets"),
    *((method, "/vms/{vm}/target") for method in ("get", "post", "patch", "delete")),
    *((method, "/hypervisors") for method in ("get", "post")),
    *((method, "/hypervisors/{name}") for method in ("get", "delete")),
    ("post", "/hypervisors/{name}/discover"),
    ("post", "/hypervisor-discovery"),
    ("post", "/hypervisors/{name}/registrations"),
    *((method, "/vms/{vm}/domain") for method in ("get", "delete")),
    *(("get", f"/replication/{what}") for what in ("identity", "status", "transfers")),
    ("put", "/replication/invitations/{peer}"),
    *((method, f"/replication/{what}") for what in ("peers", "paths") for method in ("get", "post")),
    *((method, f"/replication/{what}/{{name}}") for what in ("peers", "paths") for method in ("get", "patch", "delete")),
    ("post", "/replication/paths/{name}/test"),
    *((method, "/vms/{vm}/protections") for method in ("get", "delete")),
    ("put", "/vms/{vm}/protections/{path}"),
    *(("get", f"/vms/{{vm}}/replication{what}") for what in ("", "/samples")),
    *(("post", f"/vms/{{vm}}/replication/{verb}") for verb in ("now", "pause", "resume", "promote", "reverse", "receive", "clone", "copy")),
    ("get", "/jobs"),
    ("get", "/jobs/{id}"),
    ("delete", "/jobs/{id}"),
}

DAILY = {"name": "daily", "at": "daily 02:30", "keep_seconds": 3600}


def finished(rest: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job at its end."""
    while job["state"] in ("queued", "running"):
        job = rest.get(f"/jobs/{job['id']}", params={"after": job["version"], "wait_seconds": 5}).json()
    return job


def test_openapi_document_describes_every_address(rest: httpx.Client) -> None:
    document = rest.get("/openapi.json").json()
    described = {
        (method, path.removeprefix("/api/v1")) for path, item in document["paths"].items() for method in item
    }
    assert described == ADDRESSES
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))
    for item in document["paths"].values():
        for operation in item.values():
            good = [status for status in operation["responses"] if status.startswith("2")]
            assert all(operation["responses"][status]["content"] for status in good)
            assert operation["responses"]["404"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/ErrorBody"
            }
            assert "HTTPValidationError" not in str(operation)


def test_life_of_a_vm(rest: httpx.Client) -> None:
    made = rest.post("/vms", json={"name": "life", "disks": [{"name": "root", "size_bytes": 1 << 20}]})
    assert made.status_code == 201 and made.json()["disks"][0]["export"] == "life/root"
    assert rest.post("/vms/life/disks", json={"name": "data", "size_bytes": 4096}).status_code == 201
    assert rest.patch("/vms/life/disks/data", json={"size_bytes": 8192}).json()["size_bytes"] == 8192
    assert rest.put("/vms/life/config", json={"config": "<xml/>"}).status_code == 200
    taken = rest.post("/vms/life/snapshots", json={"name": "s"})
    assert taken.status_code == 201 and taken.json()["config"] == "<xml/>"
    assert rest.get("/vms/life/snapshots/s/diff").json()["changed_bytes"] == 0
    clones = rest.post("/vms/life/clones", json={"snapshot": "s", "count": 2, "prefix": "life"})
    assert clones.status_code == 201 and [vm["name"] for vm in clones.json()["vms"]] == ["life-1", "life-2"]
    assert rest.post("/vms/life/restore", json={"snapshot": "s"}).json()["snapshot"] == "s"
    changed = rest.patch("/vms/life", json={"name": "lives", "description": "d"}).json()
    assert (changed["name"], changed["description"]) == ("lives", "d")
    assert rest.delete("/vms/lives/disks/data").json()["name"] == "data"
    assert rest.delete("/vms/lives/snapshots/s").status_code == 200
    assert rest.delete("/vms/lives").json()["name"] == "lives"
    assert "lives" not in [vm["name"] for vm in rest.get("/vms").json()["vms"]]


def test_policies_of_the_pool_and_of_a_vm(home: Home, rest: httpx.Client, tmp_path: Path) -> None:
    before = rest.get("/status").json()["engine"]["policy"]
    assert before == {"compression": "cold", "compression_level": 3, "dedup": "on", "compaction_rate_bytes": 0}
    change = {"compression": "inline", "compression_level": 9, "compaction_rate_bytes": 20 << 20}
    assert rest.patch("/pool", json=change).json()["engine"]["policy"] == {**before, **change}
    capacity_bytes = rest.get("/status").json()["engine"]["capacity_bytes"]
    both = rest.patch("/pool", json={"capacity_bytes": capacity_bytes + (1 << 30), **before}).json()["engine"]
    assert (both["policy"], both["capacity_bytes"]) == (before, capacity_bytes + (1 << 30))

    disks = [{"name": "root", "size_bytes": 1 << 20}]
    made = rest.post("/vms", json={"name": "kept", "disks": disks, "compression": "off"}).json()
    assert made["policy"] == {"compression": "off", "dedup": None}
    changed = rest.patch("/vms/kept", json={"dedup": "off", "compression": "pool", "description": "d"}).json()
    assert (changed["policy"], changed["description"]) == ({"compression": None, "dedup": "off"}, "d")
    assert rest.post("/vms/kept/clones", json={"name": "kept-2"}).json()["vms"][0]["policy"] == changed["policy"]
    (tmp_path / "image").write_bytes(distinct_blocks(7 << 20, 16))
    image = {"path": str(tmp_path / "image"), "format": "raw"}
    body = {"name": "filled", "disks": [{"name": "root", "image": image}], "dedup": "off", "compression": "pool"}
    job = finished(rest, rest.post("/vms", json=body).json())
    assert job["result"]["policy"] == {"compression": None, "dedup": "off"}
    assert rest.get("/vms/kept-2").json()["policy"] == changed["policy"]
    for name in ("kept", "kept-2", "filled"):
        rest.delete(f"/vms/{name}")


def test_usage_adds_up_and_is_told_for_each_vm(home: Home, rest: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(distinct_blocks(9 << 20, 1024))
    image = {"path": str(tmp_path / "image"), "format": "raw"}
    made = rest.post("/vms", json={"name": "used", "disks": [{"name": "root", "image": image}]})
    assert finished(rest, made.json())["state"] == "done"
    rest.post("/vms/used/snapshots", json={"name": "s"})
    rest.post("/vms/used/clones", json={"snapshot": "s", "name": "twin"})
    found = rest.get("/pool/usage").json()
    pool = found["pool"]
    assert pool["used_bytes"] == pool["metadata_bytes"] + pool["stored_bytes"] + pool["reclaimable_bytes"]
    [used] = [vm for vm in found["vms"] if vm["vm"] == "used"]
    assert used["size_bytes"] == used["data_bytes"] == used["shared_bytes"] == 4 << 20
    assert used["unique_stored_bytes"] == 0, "the twin holds all of it"
    [snapshot] = used["snapshots"]
    assert (snapshot["snapshot"], snapshot["changed_bytes"], snapshot["frees_bytes"]) == ("s", 4 << 20, 0)
    assert rest.get("/vms/used/usage").json() == used
    rest.delete("/vms/twin")
    assert rest.get("/vms/used/usage").json()["unique_stored_bytes"] >= 4 << 20
    rest.delete("/vms/used")


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "/vms", {}, "name in the body is missing: send it"),
        ("POST", "/vms", {"name": "x", "surprise": 1}, "surprise in the body is not known here: leave it out"),
        ("POST", "/vms", {"name": 5}, "name in the body must be a text in quotes, not 5"),
        ("POST", "/pool/compact", {"rate_bytes": "fast"}, "rate_bytes in the body must be a whole number"),
        ("POST", "/pool/compact", {"rate_bytes": -1}, "rate_bytes in the body must be more than 0, not -1"),
        ("PATCH", "/vms/none", {"dedup": "maybe"}, "dedup in the body must be 'on' or 'off' or 'pool'"),
        ("POST", "/vms/none/snapshots", {"locked_until": "tomorrow"}, "locked_until in the body cannot be used: write a time with its zone, such as 2026-11-22T15:19:26Z"),
        ("GET", "/events?count=many", None, "the parameter count must be a whole number"),
        ("GET", "/vms/none/schedules/preview", None, "the parameter seconds is missing: send it"),
        ("GET", "/events?cuont=5", None, "there is no parameter 'cuont' here: leave it out (known: after, before, count, kind, level, vm, wait_seconds)"),
        ("DELETE", "/vms/none?fource=true", None, "there is no parameter 'fource' here: leave it out (known: force)"),
    ],
)
def test_what_does_not_fit_is_told_in_words_that_say_what_to_send(rest: httpx.Client, method: str, path: str, body: Any, message: str) -> None:
    answer = rest.request(method, path, json=body)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid_argument"
    assert answer.json()["error"]["message"].startswith(message), answer.text


def test_a_text_that_does_not_fit_is_not_repeated_for_it_may_be_a_secret(rest: httpx.Client) -> None:
    answer = rest.post("/vms", json={"name": ["hunter2"], "disks": "hunter2", "compression": "hunter2"})
    assert answer.status_code == 422 and "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/vms/none", None, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("PUT", "/vms", {}, 405, "invalid_argument"),
        ("POST", "/vms", {}, 422, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "surprise": 1}, 422, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "disks": [{"name": "d"}]}, 400, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "disks": [{"name": "d", "size_bytes": 1000}]}, 400, "invalid_argument"),
        ("POST", "/vms", {"name": "x" * 99, "disks": []}, 400, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "description": "~unfinished"}, 400, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "disks": [{"name": "d", "image": {"path": "rel"}}]}, 400, "invalid_argument"),
        ("PATCH", "/vms/none", {}, 400, "invalid_argument"),
        ("PATCH", "/vms/none", {"dedup": "off"}, 404, "not_found"),
        ("PATCH", "/vms/none", {"dedup": "maybe"}, 422, "invalid_argument"),
        ("POST", "/vms", {"name": "x", "compression": "hot"}, 422, "invalid_argument"),
        ("PATCH", "/pool", {}, 400, "invalid_argument"),
        ("PATCH", "/pool", {"compression": "pool"}, 422, "invalid_argument"),
        ("PATCH", "/pool", {"compression_level": 20}, 422, "invalid_argument"),
        ("PATCH", "/pool", {"compaction_rate_bytes": -1}, 422, "invalid_argument"),
        ("PATCH", "/pool", {"dedup": "off", "surprise": 1}, 422, "invalid_argument"),
        ("GET", "/vms/none/usage", None, 404, "not_found"),
        ("POST", "/vms/none/clones", {"name": "x", "count": 2, "prefix": "y"}, 400, "invalid_argument"),
        ("POST", "/vms/none/clones", {"count": 501, "prefix": "y"}, 422, "invalid_argument"),
        ("POST", "/pool/compact", {"rate_bytes": 0}, 422, "invalid_argument"),
        ("POST", "/pool/compact", {"rate_bytes": "fast"}, 422, "invalid_argument"),
        ("POST", "/pool/compact", {"rate_bytes": 1, "surprise": 1}, 422, "invalid_argument"),
        ("GET", "/vms/none/schedules", None, 404, "not_found"),
        ("PUT", "/vms/none/schedules", {"schedules": []}, 404, "not_found"),
        ("PUT", "/schedules", {}, 422, "invalid_argument"),
        ("PUT", "/schedules", {"schedules": [{"name": "x", "at": "daily 02:30"}]}, 422, "invalid_argument"),
        ("PUT", "/schedules", {"schedules": [{**DAILY, "name": f"n{n}"} for n in range(4)]}, 400, "invalid_argument"),
        ("PUT", "/schedules", {"schedules": [DAILY, DAILY]}, 400, "invalid_argument"),
        ("PUT", "/schedules", {"schedules": [{**DAILY, "name": "a/b"}]}, 400, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "daily 02:30"}, 400, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "whenever", "keep_seconds": 3600}, 400, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "daily 02:30", "keep_seconds": 3600, "zone": "Here"}, 400, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "daily 02:30", "keep_seconds": 59}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "daily 02:30", "keep_seconds": 1 << 40}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"at": "daily " + "02:30," * 100, "keep_seconds": 3600}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"consistency": "perfect"}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"surprise": 1}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"replicate": 0}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"keep_seconds": "3600"}, 422, "invalid_argument"),
        ("PATCH", "/schedules/new", {"keep_seconds": 3600.5}, 422, "invalid_argument"),
        ("DELETE", "/schedules/none", None, 404, "not_found"),
        ("GET", "/vms/none/schedules/preview?seconds=60", None, 404, "not_found"),
        ("GET", "/vms/none/schedules/preview", None, 422, "invalid_argument"),
        ("GET", "/vms/none/schedules/preview?seconds=nan", None, 400, "invalid_argument"),
        ("GET", "/vms/none/schedules/preview?seconds=1e300", None, 400, "invalid_argument"),
        ("POST", "/vms/none/schedules/hourly/run", None, 404, "not_found"),
        ("PATCH", "/schedule-settings", {"scheduled_snapshots_max": 0}, 400, "invalid_argument"),
        ("PATCH", "/schedule-settings", {}, 422, "invalid_argument"),
        ("POST", "/vms/none/snapshots", {"keep_seconds": 3600}, 404, "not_found"),
        ("POST", "/vms/none/snapshots", {"keep_seconds": 0}, 422, "invalid_argument"),
        ("POST", "/vms/none/snapshots", {"locked_until": "2001-01-01T00:00:00Z"}, 400, "invalid_argument"),
        ("POST", "/vms/none/snapshots", {"locked_until": "tomorrow"}, 422, "invalid_argument"),
        ("POST", "/vms/none/snapshots", {"locked_until": "9999-12-31T23:59:59-12:00"}, 400, "invalid_argument"),
        ("PATCH", "/vms/none/snapshots/s", {}, 400, "invalid_argument"),
        ("PATCH", "/vms/none/snapshots/s", {"expires": None}, 404, "not_found"),
        ("PATCH", "/vms/none/snapshots/s", {"expires": "2001-01-01T00:00:00Z"}, 400, "invalid_argument"),
        ("PATCH", "/vms/none/snapshots/s", {"expires": "2999-01-01T00:00:00"}, 422, "invalid_argument"),
        ("PATCH", "/vms/none/snapshots/s", {"expires": 4102444800}, 422, "invalid_argument"),
        ("PATCH", "/vms/none/snapshots/s", {"description": "~unfinished"}, 400, "invalid_argument"),
        ("GET", "/events?level=worst", None, 422, "invalid_argument"),
        ("GET", "/events?count=0", None, 422, "invalid_argument"),
        ("GET", "/events?before=99999999999999999999", None, 422, "invalid_argument"),
        ("DELETE", "/jobs/none", None, 404, "not_found"),
        ("GET", "/jobs/none?wait_seconds=1000", None, 422, "invalid_argument"),
    ],
)
def test_failures_have_one_shape(
    rest: httpx.Client, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = rest.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and error["code"] == code
    assert error["message"] and "\n" not in error["message"]


def test_whole_numbers_may_be_written_as_json_writes_them(rest: httpx.Client) -> None:
    changed = rest.patch("/schedule-settings", content=b'{"scheduled_snapshots_max": 256.0}', headers={"Content-Type": "application/json"})
    assert changed.json() == {"scheduled_snapshots_max": 256}


def test_a_wrong_method_is_told_all_right_ones(rest: httpx.Client) -> None:
    assert rest.put("/vms/web").headers["Allow"] == "DELETE, GET, PATCH"
    assert rest.delete("/vms").headers["Allow"] == "GET, POST"
    assert rest.put("/openapi.json").headers["Allow"] == "GET"


def test_body_that_is_too_large_or_of_unknown_length_is_refused(rest: httpx.Client) -> None:
    assert rest.put("/vms/none/config", content=b"x" * (5 << 20)).status_code == 413
    assert rest.put("/vms/none/config", content=iter([b"x"])).status_code == 411


def test_attachments_are_listed(home: Home, rest: httpx.Client) -> None:
    import nbd

    rest.post("/vms", json={"name": "attached", "disks": [{"name": name, "size_bytes": 1 << 20} for name in ("root", "more")]})
    client = nbd.NBD()
    client.connect_uri(home.uri("attached/root"))
    again = nbd.NBD()
    again.connect_uri(home.uri("attached/root"))
    other = nbd.NBD()
    other.connect_uri(home.uri("attached/more"))
    found = rest.get("/attachments").json()["attachments"]
    assert [a["export"] for a in found] == ["attached/more", "attached/root", "attached/root"] and "pid" in found[0]["client"]
    assert rest.get("/attachments", params={"vm": "attached"}).json() == {"attachments": found, "next": None}
    assert rest.get("/attachments", params={"vm": "attache"}).json()["attachments"] == []
    first = rest.get("/attachments", params={"count": 1}).json()
    assert first == {"attachments": found[:1], "next": "attached/more"}
    assert rest.get("/attachments", params={"count": 1, "after": first["next"]}).json() == {"attachments": found[1:], "next": None}
    assert rest.delete("/vms/attached").status_code == 409
    for one in (client, again, other):
        one.shutdown()


def test_job_tells_its_progress_and_its_result(rest: httpx.Client, tmp_path: Path) -> None:
    run_tool("qemu-img", "create", "-f", "qcow2", tmp_path / "i.qcow2", "64M")
    run_tool("qemu-io", "-c", "write -P 1 0 32M", tmp_path / "i.qcow2")
    image = {"path": str(tmp_path / "i.qcow2")}
    started = rest.post("/vms", json={"name": "job", "disks": [{"name": "root", "image": image}]})
    assert started.status_code == 202
    job = finished(rest, started.json())
    assert job["state"] == "done" and job["fraction"] == 1 and job["done_bytes"] == job["total_bytes"] == 64 << 20
    assert job["result"]["name"] == "job" and job["result"]["description"] == "" and job["finished"]
    assert job["id"] in [other["id"] for other in rest.get("/jobs").json()["jobs"]]
    assert rest.delete(f"/jobs/{job['id']}").json()["state"] == "done"


def test_compaction_is_a_job_that_gives_space_back(home: Home, rest: httpx.Client, tmp_path: Path) -> None:
    for number, name in enumerate(("stays", "gone")):
        (tmp_path / name).write_bytes(distinct_blocks(number << 20, 4096))
        image = {"path": str(tmp_path / name), "format": "raw"}
        made = rest.post("/vms", json={"name": name, "disks": [{"name": "root", "image": image}]})
        assert finished(rest, made.json())["state"] == "done"
    rest.delete("/vms/gone")
    before = rest.get("/status").json()
    assert before["compaction"] is None and "compaction" not in before["engine"]

    slow = rest.post("/pool/compact", json={"rate_bytes": 1}).json()
    assert (slow["kind"], slow["subject"]) == ("pool.compact", "pool")
    running = until(lambda: rest.get("/status").json()["compaction"], "the compaction to be seen")
    assert running["kind"] == "compact" and running["done_bytes"] <= running["total_bytes"]
    rest.delete(f"/jobs/{slow['id']}")
    assert finished(rest, rest.get(f"/jobs/{slow['id']}").json())["state"] == "cancelled"
    assert rest.get("/status").json()["compaction"] is None

    job = finished(rest, rest.post("/pool/compact").json())
    assert job["state"] == "done" and job["fraction"] == 1 and job["done_bytes"] == job["total_bytes"] > 0
    compacted = Compacted.model_validate(job["result"], strict=True)
    assert compacted.freed_bytes > 12 << 20 and compacted.live_bytes >= 16 << 20 and compacted.kept == []
    after = rest.get("/status").json()
    freed_bytes = before["engine"]["stats"]["used_bytes"] - after["engine"]["stats"]["used_bytes"]
    assert freed_bytes > 12 << 20
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "stays", home.uri("stays/root"))


def test_cancelled_job_takes_back_what_it_did(home: Home, rest: httpx.Client, tmp_path: Path) -> None:
    run_tool("dd", "if=/dev/urandom", f"of={tmp_path / 'i.raw'}", "bs=1M", "count=300", "status=none")
    before = home.state()
    image = {"path": str(tmp_path / "i.raw")}
    job = rest.post("/vms", json={"name": "cut", "disks": [{"name": "root", "image": image}]}).json()
    until(lambda: rest.get(f"/jobs/{job['id']}").json()["fraction"] > 0, "progress")
    assert rest.get("/vms/cut").json()["description"].startswith("~unfinished")
    rest.delete(f"/jobs/{job['id']}")
    assert finished(rest, rest.get(f"/jobs/{job['id']}").json())["state"] == "cancelled"
    assert home.state() == before


def test_job_that_fails_says_why(rest: httpx.Client, tmp_path: Path) -> None:
    run_tool("qemu-img", "create", "-f", "qcow2", tmp_path / "i.qcow2", "8M")
    run_tool("qemu-io", "-c", "write -P 1 0 8M", tmp_path / "i.qcow2")
    with open(tmp_path / "i.qcow2", "r+b") as file:
        file.truncate(1 << 20)
    image = {"path": str(tmp_path / "i.qcow2")}
    job = rest.post("/vms", json={"name": "fails", "disks": [{"name": "root", "image": image}]}).json()
    job = finished(rest, job)
    assert job["state"] == "failed" and job["error"]["code"] == "invalid_argument"
    assert rest.get("/vms/fails").status_code == 404


def test_tcp_serves_the_same_but_no_files(tcp: httpx.Client, tmp_path: Path) -> None:
    assert tcp.get("/vms").status_code == 200
    image = {"path": str(tmp_path / "i.raw"), "format": "raw"}
    refused = tcp.post("/vms", json={"name": "tcp", "disks": [{"name": "root", "image": image}]})
    assert refused.status_code == 403 and "Unix socket" in refused.json()["error"]["message"]
    assert tcp.post("/vms", json={"name": "tcp", "disks": [{"name": "root", "size_bytes": 512}]}).status_code == 201
    answer = tcp.post("/vms/tcp/disks/root/export", json={"path": str(tmp_path / "o.raw"), "format": "raw"})
    assert answer.status_code == 403 and not list(tmp_path.iterdir())
    assert tcp.patch("/vms/tcp", json={"agent": "/tmp/agent.sock"}).status_code == 403
    assert tcp.delete("/vms/tcp").status_code == 200


def test_sockets_are_the_owners_alone(home: Home) -> None:
    run = home.path / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    for name in ("api.sock", "nbd.sock", "engine.sock"):
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o600, name


def test_vm_of_the_same_name_survives_the_failure_of_an_import(rest: httpx.Client, tmp_path: Path) -> None:
    run_tool("dd", "if=/dev/urandom", f"of={tmp_path / 'i.raw'}", "bs=1M", "count=300", "status=none")
    image = {"path": str(tmp_path / "i.raw")}
    job = rest.post("/vms", json={"name": "twin", "disks": [{"name": "root", "image": image}]}).json()
    until(lambda: rest.get(f"/jobs/{job['id']}").json()["fraction"] > 0, "progress")
    assert rest.delete("/vms/twin", params={"force": True}).status_code == 200
    mine = rest.post("/vms", json={"name": "twin", "disks": [{"name": "root", "size_bytes": 512}]}).json()
    assert finished(rest, rest.get(f"/jobs/{job['id']}").json())["state"] == "failed"
    assert rest.get("/vms/twin").json()["uuid"] == mine["uuid"]
