"""What a served home tells of its VMs: by REST, to Prometheus and on the command line, over restarts, renames and deletions."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from blockdev.statistics import figures
from tests.cli.served import Home, until
from tests.statistics.conftest import counters, fio, of, scrape

MEBIBYTE = 1 << 20
DISK = [{"name": "root", "size_bytes": 64 * MEBIBYTE}]


def make(rest: httpx.Client, name: str) -> dict[str, Any]:
    answer = rest.post("/vms", json={"name": name, "disks": DISK})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def now(rest: httpx.Client, name: str) -> dict[str, Any]:
    """With a look that is later than all that was done before."""
    time.sleep(1.1)  # what is younger than a second counts as now
    answer = rest.get(f"/vms/{name}/statistics/now", params={"watch": True})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_guests_did_is_told_alike_everywhere(home: Home, rest: httpx.Client) -> None:
    make(rest, "web"), make(rest, "idle")
    reads = fio(home, "web/root", "--rw=randrw", "--size=16m", "--number_ios=4000")
    done = {kind: reads[kind]["total_ios"] for kind in ("read", "write")}
    assert done["read"] + done["write"] == 4000
    found = now(rest, "web")
    assert found["engine_running"] and found["in_flight"] == 0
    for kind, count in done.items():
        assert found["totals"][kind]["operations"] == count and found["totals"][kind]["bytes"] == count * 4096
        assert sum(found["latency"][kind]) == sum(found["request_sizes"][kind]) == count
        assert found["request_sizes"][kind][3] == count, "of 4 KiB"
    assert found["disks"][0]["disk"] == "root" and found["disks"][0]["totals"] == found["totals"]
    samples, uuid = scrape(home), rest.get("/vms/web").json()["uuid"]
    assert of(samples, "blockdev_vm_info", vm=uuid, name="web") == 1
    for kind, count in done.items():
        assert of(samples, "blockdev_operations_total", vm=uuid, disk="root", kind=kind) == count
        assert of(samples, "blockdev_operation_bytes_total", vm=uuid, kind=kind) == count * 4096
        assert of(samples, "blockdev_latency_seconds_count", vm=uuid, kind=kind) == count
        assert of(samples, "blockdev_latency_seconds_bucket", vm=uuid, kind=kind, le="+Inf") == count
    assert of(samples, "blockdev_engine_up") == 1
    graph = rest.get("/vms/web/statistics", params={"since": -300, "points": 2000}).json()
    reads_shown = sum(value * graph["step_seconds"] for value in graph["read_iops"] if value is not None)
    part = max(value or 0 for value in graph["read_iops"])
    assert part > 0 and reads_shown >= done["read"] * 0.98, "the open slot is not whole: its rate is for fewer seconds"
    for cause in figures.CAUSES:
        assert any(value is not None for value in graph[f"wait_{cause}_us_p99"]), cause
    pool = rest.get("/pool/statistics", params={"since": -300, "points": 2000}).json()
    assert pool["vm"] is None and max(value or 0 for value in pool["read_iops"]) > 0
    idle = now(rest, "idle")
    assert idle["totals"]["read"]["operations"] == 0 and idle["read_iops"] == 0 and idle["read_latency_us_mean"] is None
    everything = rest.get("/statistics").json()
    assert {"idle", "web"} <= set(everything["vms"]["name"])
    columns = {name: values for name, values in everything["vms"].items() if name not in ("name", "uuid")}
    assert set(columns) == {*figures.COLUMNS, "in_flight", "changed_bytes_day"}
    assert {len(values) for values in columns.values()} == {len(everything["vms"]["name"])}
    changed = dict(zip(everything["vms"]["name"], columns["changed_bytes_day"], strict=True))
    assert changed["web"] > 0 == changed["idle"]


def test_no_counter_goes_backwards_and_no_gap_is_longer_than_the_downtime(own: Home) -> None:
    """The engine is killed, the control plane is killed, then both; each time guests go on afterwards."""
    with own.rest() as rest:
        uuid = make(rest, "web")["uuid"]
        fio(own, "web/root", "--rw=randwrite", "--size=16m", "--number_ios=2000")
        began = int(time.time())
        until(lambda: now(rest, "web")["seconds"] > 0, "a second look")
        before, down = scrape(own), 0.0
        for victims in (("engine",), ("control",), ("engine", "control")):
            fio(own, "web/root", "--rw=randwrite", "--size=16m", "--number_ios=2000")
            if victims == ("engine", "control"):
                time.sleep(1.1)
                before = scrape(own)  # what nobody has seen may be lost with both
            killed = time.monotonic()
            for victim in victims:
                os.kill(own.engine_pid() if victim == "engine" else own.control_pid(), signal.SIGKILL)
            until(lambda: own.run("pool", "status").status == 0 and own.json("pool", "status")["engine_running"], "both to be back")
            until(lambda: now(rest, "web")["engine_running"], "a look")
            down += time.monotonic() - killed
            after = scrape(own)
            backwards = {key: (value, after.get(key)) for key, value in counters(before).items() if not after.get(key, -1) >= value}
            assert not backwards, (victims, backwards)
            before = after
        assert of(before, "blockdev_operations_total", vm=uuid, kind="write") >= 2000 * 3, "those after the last look of a dead pair may be lost"
        time.sleep(1.1)
        graph = rest.get("/vms/web/statistics", params={"since": began, "points": 2000}).json()
        assert graph["step_seconds"] == 10
        shown = graph["write_iops"]
        first = next(index for index, value in enumerate(shown) if value is not None)
        gaps = [value is None for value in shown[first:-1]]
        assert sum(gaps) * 10 <= down, (shown, down)


def test_a_stop_and_a_start_lose_no_request(own: Home) -> None:
    with own.rest() as rest:
        make(rest, "web")
        fio(own, "web/root", "--rw=randwrite", "--size=16m", "--number_ios=3000")
        assert now(rest, "web")["totals"]["write"]["operations"] == 3000
        own.stop()
        own.serve()
        fio(own, "web/root", "--rw=randread", "--size=16m", "--number_ios=1000")
        with own.rest() as again:
            found = now(again, "web")
        assert (found["totals"]["write"]["operations"], found["totals"]["read"]["operations"]) == (3000, 1000)
        assert found["changed_bytes_day"] > 0


def test_history_survives_a_new_name_and_goes_with_the_vm(home: Home, rest: httpx.Client) -> None:
    uuid = make(rest, "old")["uuid"]
    fio(home, "old/root", "--rw=randwrite", "--size=16m", "--number_ios=2000")
    file = home.path / f"statistics/{uuid}.ring"
    until(file.exists, "the end of a slot")
    assert rest.patch("/vms/old", json={"name": "shop"}).status_code == 200
    found = now(rest, "shop")
    assert found["totals"]["write"]["operations"] == 2000
    graph = rest.get("/vms/shop/statistics").json()
    assert graph["vm"] == "shop" and max(value or 0 for value in graph["write_iops"]) > 0
    assert of(scrape(home), "blockdev_vm_info", vm=uuid, name="shop") == 1
    assert rest.get("/vms/old/statistics").status_code == rest.get("/vms/old/statistics/now").status_code == 404
    assert rest.delete("/vms/shop").status_code == 200
    until(lambda: not file.exists(), "the file to go")
    assert not any(("vm", uuid) in labels for _name, labels in scrape(home))
    again = make(rest, "old")
    assert again["uuid"] != uuid and now(rest, "old")["totals"]["write"]["operations"] == 0


def test_what_a_removed_disk_counted_stays_its_vms(home: Home, rest: httpx.Client) -> None:
    uuid = make(rest, "wide")["uuid"]
    assert rest.post("/vms/wide/disks", json={"name": "data", "size_bytes": 16 * MEBIBYTE}).status_code == 201
    fio(home, "wide/data", "--rw=randwrite", "--size=8m", "--number_ios=500")
    assert now(rest, "wide")["totals"]["write"]["operations"] == 500
    assert rest.delete("/vms/wide/disks/data").status_code == 200
    found = now(rest, "wide")
    assert found["totals"]["write"]["operations"] == 500 and [one["disk"] for one in found["disks"]] == ["root"]
    samples = scrape(home)
    assert of(samples, "blockdev_operations_total", vm=uuid, disk="", kind="write") == 500
    assert of(samples, "blockdev_latency_seconds_count", vm=uuid, kind="write") == 500


def test_a_clone_and_a_snapshot_count_to_their_own_vm(home: Home, rest: httpx.Client) -> None:
    make(rest, "source")
    fio(home, "source/root", "--rw=write", "--size=4m", "--number_ios=1000")
    assert rest.post("/vms/source/snapshots", json={"name": "s"}).status_code == 201
    assert rest.post("/vms/source/clones", json={"snapshot": "s", "name": "copy"}).status_code == 201
    fio(home, "copy/root", "--rw=randread", "--size=4m", "--number_ios=300")
    fio(home, "source/root@s", "--rw=randread", "--size=4m", "--number_ios=200")
    assert now(rest, "copy")["totals"]["read"]["operations"] == 300
    assert now(rest, "source")["totals"]["read"]["operations"] == 200


def test_space_is_known_soon_after_the_start(own: Home) -> None:
    with own.rest() as rest:
        make(rest, "web")
        fio(own, "web/root", "--rw=write", "--size=8m", "--number_ios=2048")
        own.stop()
        own.serve()
        with own.rest() as again:
            until(lambda: now(again, "web")["live_bytes"] is not None, "space to be measured")
            found, usage = now(again, "web"), again.get("/vms/web/usage").json()
        assert found["live_bytes"] == usage["data_bytes"] == 8 * MEBIBYTE
        assert found["unique_bytes"] == usage["unique_stored_bytes"] and found["snapshots_bytes"] == usage["snapshots_stored_bytes"]


def test_space_of_a_new_vm_follows_what_is_written(own: Home) -> None:
    """Within seconds, not at the measurement in five minutes."""
    with own.rest() as rest:
        make(rest, "web")
        until(lambda: now(rest, "web")["live_bytes"] is not None, "space to be measured")
        make(rest, "late")
        fio(own, "late/root", "--rw=write", "--size=8m", "--number_ios=2048")
        until(lambda: now(rest, "late")["live_bytes"] == 8 * MEBIBYTE, "space to be measured again")


def test_an_engine_that_is_away_is_told_and_its_numbers_are_unknown(own: Home) -> None:
    with own.rest() as rest:
        make(rest, "web")
        pid = own.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = rest.get("/statistics", params={"watch": True}).json()
            assert time.monotonic() - began < 60, "an engine that hangs is not waited for"
            assert found["vms"]["name"] in ([], ["web"])
            until(lambda: not rest.get("/statistics").json()["engine_running"], "the look to give up")
            assert rest.get("/vms/web/statistics/now").json()["read_iops"] is None
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: now(rest, "web")["engine_running"], "the engine to answer again")


def test_the_command_line_tells_of_one_vm_and_of_all(home: Home, rest: httpx.Client) -> None:
    make(rest, "busy"), make(rest, "calm")
    now(rest, "calm")
    fio(home, "busy/root", "--rw=randwrite", "--size=16m", "--number_ios=4000")
    time.sleep(1.1)
    told = home("vm", "stats", "busy")
    assert "4,000 (15.6 MiB)" in told and "latency:" in told and "disk root:" in told
    as_json = home.json("vm", "stats", "busy")
    assert as_json["totals"]["write"]["operations"] == 4000
    lines = home("vm", "stats", "busy", "--watch", "--count", "2").splitlines()
    assert len(lines) == 2 and all("write/s" in line for line in lines)
    table = home("vm", "stats", "busy", "--since", "1h").splitlines()
    assert table[0].startswith("VM busy, in steps of ") and table[1].split()[:3] == ["FROM", "READ/S", "WRITE/S"] and len(table) <= 26
    assert len(home.json("vm", "stats", "busy", "--since", "1h")["t"]) <= 600
    for sort in ("iops", "throughput", "latency", "growth"):
        header, *rows = home("top", "--sort", sort).splitlines()
        assert header.startswith("VM ") and {"busy", "calm"} <= {row.split()[0] for row in rows}
    by_growth = [one["name"] for one in home.json("top", "--sort", "growth")["vms"]]
    assert by_growth.index("busy") < by_growth.index("calm")
    assert home.run("vm", "stats", "nobody").error == "there is no VM nobody"
    assert "give one of them" in home.run("vm", "stats", "busy", "--watch", "--since", "1h").error


def test_json_lines_of_a_watch_are_documents(home: Home, rest: httpx.Client) -> None:
    make(rest, "watched")
    shown = home("vm", "stats", "watched", "--watch", "--count", "2", "--json").splitlines()
    assert [json.loads(line)["vm"] for line in shown] == ["watched"] * 2


def test_the_files_of_a_home_are_the_owners_alone(home: Home, rest: httpx.Client) -> None:
    make(rest, "private")
    directory = Path(home.path / "statistics")
    until(lambda: list(directory.glob("*.ring")), "the end of a slot")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())

