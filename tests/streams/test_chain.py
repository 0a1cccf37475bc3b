"""A chain of stream files brings a VM's snapshots to another home, bit by bit, and what cannot come leaves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from blockdev.api.jobs import RUNNING_MAX
from blockdev.transfer.nbd import Export
from tests.cli.served import run_tool, until
from tests.streams.document_reader import Disks, read_stream
from tests.streams.vm_chain import MEBIBYTE, NAMES, Api, Chain, digest, digests


def test_every_snapshot_arrives_bit_by_bit(source: Api, target: Api, chain: Chain, files: Path) -> None:
    for file in chain.files:
        target.load(file)
    shown = target("GET", "/vms/web")
    assert shown["uuid"] == source("GET", "/vms/web")["uuid"]
    for name in NAMES:
        before, after = source.snapshot("web", name), target.snapshot("web", name)
        assert after["origin"] == "import" and after["expires"] is None
        for field in ("uuid", "created", "description", "consistency", "asked", "config", "size_bytes"):
            assert before[field] == after[field], field
        assert digests(target, "web", name) == chain.digests[name], name
    assert [one["name"] for one in target("GET", "/vms/web/snapshots")["snapshots"]] == list(NAMES)
    # the head is the first one, and no later import has touched it
    assert {disk["name"]: digest(target.home, disk["export"]) for disk in shown["disks"]} == chain.digests["one"]
    assert target("GET", "/vms/web/config")["config"] == "<one/>"
    uris = [api.home.uri("web/root@three") for api in (source, target)]
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", *uris)
    again = [Chain.export(target, "web", number, files / f"again-{number}.bds") for number in range(3)]
    for first, second in zip(chain.made, again, strict=True):
        for field in ("uuid", "base", "disks", "data_bytes", "hole_bytes"):
            assert first[field] == second[field], field
    assert target.objects() == (2, 2 + 3 + 2)  # no vdisk of an import is left


def test_a_reader_that_knows_the_document_alone_finds_the_same(source: Api, chain: Chain) -> None:
    content: Disks = {}
    for name, file in zip(NAMES, chain.files, strict=True):
        metadata, content = read_stream(str(file), content)
        assert metadata["snapshot"]["name"] == name and metadata["config"] == source.snapshot("web", name)["config"]
        found = {disk: (len(plain), xxhash.xxh3_128_hexdigest(plain)) for disk, plain in content.items()}
        assert found == chain.digests[name], name


def test_a_file_says_what_it_holds(source: Api, chain: Chain) -> None:
    whole, changed, last = (source.job("/streams/inspect", {"path": str(file)}) for file in chain.files)
    assert [whole, changed, last] == chain.made
    assert whole["base"] is None and changed["base"] == {"uuid": whole["uuid"], "name": "one"}
    assert [(disk["name"], disk["based"]) for disk in changed["disks"]] == [("root", True), ("data", True), ("more", False)]
    assert last["file_bytes"] == chain.files[2].stat().st_size
    assert oct(chain.files[0].stat().st_mode & 0o777) == "0o600"


def test_a_snapshot_can_be_imported_beside_itself_under_other_names(source: Api, chain: Chain) -> None:
    """It becomes a VM of its own identity, and its base has to be named, as two VMs have it."""
    source.load(chain.files[0], vm="copy", name="first", keep_seconds=3600)
    copied = source.snapshot("copy", "first")
    assert copied["uuid"] == source.snapshot("web", "one")["uuid"] and copied["expires"]
    assert source("GET", "/vms/copy")["uuid"] != source("GET", "/vms/web")["uuid"]
    error = failure(source, {"path": str(chain.files[1])})
    assert error["code"] == "invalid_argument" and "copy, web" in error["message"] and "--vm" in error["message"]
    source.load(chain.files[1], vm="copy")
    assert digests(source, "copy", "two") == chain.digests["two"]
    source("DELETE", "/vms/copy")


def failure(api: Api, body: dict[str, Any]) -> dict[str, str]:
    """Why an import is refused; it leaves nothing."""
    before = api.home.state(), api.objects()
    ended = api.try_job("/streams/import", body)
    assert ended["state"] in ("failed", "refused"), ended
    assert (api.home.state(), api.objects()) == before
    error: dict[str, str] = ended["error"]
    return error


def test_refusals_say_what_to_do(source: Api, chain: Chain, files: Path) -> None:
    first, second, third = chain.files
    taken = failure(source, {"path": str(first)})
    assert taken["code"] == "already_exists" and "--vm" in taken["message"]
    there = failure(source, {"path": str(second)})
    assert there["code"] == "already_exists" and "it is web@two" in there["message"]
    source("POST", "/vms", json={"name": "other", "disks": [{"name": "root", "size_bytes": MEBIBYTE}]})
    lacking = failure(source, {"path": str(second), "vm": "other"})
    uuid = source.snapshot("web", "one")["uuid"]
    assert lacking["code"] == "not_found" and "web@one" in lacking["message"] and uuid in lacking["message"]
    assert failure(source, {"path": str(second), "vm": "nobody"})["code"] == "not_found"
    assert failure(source, {"path": str(files / "no")})["code"] == "not_found"
    assert failure(source, {"path": str(files)})["code"] == "invalid_argument"
    assert failure(source, {"path": str(first), "vm": "a/b"})["code"] == "invalid_argument"
    source("DELETE", "/vms/web/snapshots/three")
    source.take("web", "three")
    named = failure(source, {"path": str(third)})
    assert named["code"] == "already_exists" and "--name" in named["message"]
    source.load(third, name="third")
    assert digests(source, "web", "third") == chain.digests["three"]
    for body, code in (
        ({"path": "relative"}, "invalid_argument"),
        ({"path": str(first)}, "already_exists"),
        ({"path": str(files / "new"), "since": "three"}, "invalid_argument"),
        ({"path": str(files / "new"), "since": "no"}, "not_found"),
    ):
        ended = source.try_job("/vms/web/snapshots/one/export", body)
        assert ended["state"] == "refused" and ended["error"]["code"] == code, ended
    assert sorted(path.name for path in files.iterdir() if path.name.startswith((".", "new"))) == []


def test_a_damaged_file_leaves_nothing(target: Api, chain: Chain, files: Path) -> None:
    content = bytearray(chain.files[0].read_bytes())
    damaged = files / "damaged.bds"
    content[len(content) * 2 // 3] ^= 1
    damaged.write_bytes(content)
    error = failure(target, {"path": str(damaged), "vm": "damaged"})
    assert error["code"] == "corrupt" and "is damaged at byte" in error["message"] and str(damaged) in error["message"]
    damaged.write_bytes(content[: len(content) // 2])
    error = failure(target, {"path": str(damaged), "vm": "damaged"})
    assert error["code"] == "corrupt" and f"cut off at byte {len(content) // 2}" in error["message"]
    ended = target.try_job("/streams/inspect", {"path": str(damaged)})
    assert ended["state"] == "failed" and ended["error"]["code"] == "corrupt"


def test_a_full_pool_leaves_nothing(small: Api, source: Api, files: Path) -> None:
    big = files / "big.bds"
    make_large(source, "big", 48 * MEBIBYTE, big)
    error = failure(small, {"path": str(big)})
    assert error["code"] == "pool_full" and "does not fit" in error["message"]


def make_large(api: Api, vm: str, size_bytes: int, file: Path) -> None:
    """A snapshot that takes a moment to read."""
    api("POST", "/vms", json={"name": vm, "disks": [{"name": "root", "size_bytes": size_bytes}]})
    with open("/dev/urandom", "rb") as noise:
        content = noise.read(size_bytes)
    with Export(api.home.path / "run/nbd.sock", f"{vm}/root") as disk:
        disk.write(0, content)
    api.take(vm, "all")
    api.export(vm, "all", file, level=0)


@contextmanager
def in_the_middle(api: Api, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A job that has done a part of its work, and does no more of it meanwhile: its engine stands still."""
    engine = api.home.engine_pid()
    job = api("POST", path, json=body)

    def is_begun() -> bool:
        nonlocal job
        job = api("GET", f"/jobs/{job['id']}")
        assert job["state"] in ("queued", "running"), job
        return job["fraction"] > 0

    until(is_begun, "a job that runs")
    os.kill(engine, signal.SIGSTOP)
    try:
        yield job
    finally:
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)


def test_a_cancelled_job_leaves_nothing(source: Api, target: Api, files: Path) -> None:
    large = files / "large.bds"
    make_large(source, "large", 256 * MEBIBYTE, large)
    before = target.home.state(), target.objects()
    with in_the_middle(target, "/streams/import", {"path": str(large)}) as job:
        target("DELETE", f"/jobs/{job['id']}")
    assert target.wait(job)["state"] == "cancelled"
    assert (target.home.state(), target.objects()) == before
    slowly = {"path": str(files / "cancelled"), "level": 19}
    with in_the_middle(source, "/vms/large/snapshots/all/export", slowly) as job:
        pass
    refused = source.refusal("DELETE", "/vms/large/snapshots/all")
    assert refused["code"] == "busy" and "attached" in refused["message"]  # what is being read is not deleted
    source("DELETE", f"/jobs/{job['id']}")
    assert source.wait(job)["state"] == "cancelled"
    assert [path.name for path in files.iterdir() if path.name.startswith((".", "cancelled"))] == []


def test_an_export_is_of_the_snapshot_that_was_named(source: Api, files: Path) -> None:
    """Not of another one that got its name while the job was queued behind those that run."""
    make_large(source, "queue", 32 * MEBIBYTE, files / "queue.bds")
    source.take("queue", "late")
    path = "/vms/queue/snapshots/all/export"
    slow = [source("POST", path, json={"path": str(files / f"slow-{number}"), "level": 19}) for number in range(RUNNING_MAX)]
    late = source("POST", "/vms/queue/snapshots/late/export", json={"path": str(files / "late"), "since": "all"})
    source("DELETE", "/vms/queue/snapshots/late")
    source.take("queue", "late")
    assert source("GET", f"/jobs/{late['id']}")["state"] == "queued"
    for job in slow:
        source("DELETE", f"/jobs/{job['id']}")
    ended = source.wait(late)
    assert ended["state"] == "failed" and ended["error"]["code"] == "not_found", ended
    assert "another one has its name" in ended["error"]["message"] and not (files / "late").exists()


def test_an_import_outlives_a_rename(source: Api, target: Api, chain: Chain, files: Path) -> None:
    """The snapshot comes to the VM, whatever it is called by then."""
    make_large(source, "busy", 1 * MEBIBYTE, files / "busy-all.bds")
    target.load(files / "busy-all.bds")
    change_and_take(source, "busy", 64 * MEBIBYTE)
    source.export("busy", "more", files / "busy-more.bds", "all", level=0)
    job = target("POST", "/streams/import", json={"path": str(files / "busy-more.bds")})
    until(lambda: target("GET", f"/jobs/{job['id']}")["fraction"] > 0, "a job that runs")
    target("PATCH", "/vms/busy", json={"name": "renamed"})
    assert target.wait(job)["state"] == "done"
    assert digests(target, "renamed", "more") == digests(source, "busy", "more")


def change_and_take(api: Api, vm: str, size_bytes: int) -> None:
    api("PATCH", f"/vms/{vm}/disks/root", json={"size_bytes": size_bytes})
    with open("/dev/urandom", "rb") as noise, Export(api.home.path / "run/nbd.sock", f"{vm}/root") as disk:
        disk.write(0, noise.read(size_bytes))
    api.take(vm, "more")


def test_a_killed_control_plane_leaves_nothing(target: Api, files: Path) -> None:
    before = target.home.state(), target.objects()
    pid = target.home.control_pid()
    with in_the_middle(target, "/streams/import", {"path": str(files / "large.bds")}):
        os.kill(pid, signal.SIGKILL)
    until(lambda: target.home.control_pid() not in (0, pid), "another control plane")
    until(lambda: target.home.run("pool", "status").status == 0, "its answer")
    until(lambda: target.objects() == before[1], "what was left to go")
    assert target.home.state() == before[0]


def test_a_killed_engine_leaves_nothing(target: Api, files: Path) -> None:
    before = target.home.state(), target.objects()
    engine = target.home.engine_pid()
    with in_the_middle(target, "/streams/import", {"path": str(files / "large.bds")}) as job:
        os.kill(engine, signal.SIGKILL)
    ended = target.wait(job)
    assert ended["state"] == "failed" and ended["error"]["code"] in ("unavailable", "tool_failed", "not_found"), ended
    until(lambda: target("GET", "/status")["engine_running"], "another engine")
    target("PATCH", "/vms/web", json={"description": "the next change agrees first"})
    target("PATCH", "/vms/web", json={"description": ""})
    assert (target.home.state(), target.objects()) == before
    target.load(files / "large.bds", vm="large")
    assert target("GET", "/vms/large")["snapshot_count"] == 1
