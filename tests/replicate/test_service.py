"""Two homes, each with its processes, that replicate to each other over real SSH."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockdev.engine.client import EngineClient
from tests.cli.served import SECONDS_MAX, Home, run_tool, served_home, until
from tests.ports import free_port

MEBIBYTE = 1 << 20
SLOW_BYTES = 8_000_000  # per second: slow enough to be met in the middle
_numbers = itertools.count(1)


class Site:
    """A home that listens for peers."""

    def __init__(self, stack: ExitStack) -> None:
        self.port = free_port()
        self.home: Home = stack.enter_context(served_home("--replicate", f"127.0.0.1:{self.port}"))
        self.rest = stack.enter_context(self.home.rest())

    def ask(self, method: str, path: str, /, **body: Any) -> Any:
        answer = self.rest.request(method, path, json=None if method in ("GET", "DELETE") else body)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json()

    def refused(self, method: str, path: str, /, **body: Any) -> str:
        answer = self.rest.request(method, path, json=None if method in ("GET", "DELETE") else body)
        assert not answer.is_success, (path, answer.text)
        return str(answer.json()["error"]["message"])

    def status(self, vm: str, direction: str | None = "sent") -> dict[str, Any]:
        found = self.ask("GET", f"/replication/status?vm={vm}")["replications"]
        return next((one for one in found if one["direction"] == direction), {"state": "not configured", "newest": None})

    def snapshots(self, vm: str) -> list[str]:
        answer = self.rest.get(f"/vms/{vm}/snapshots")
        return [one["name"] for one in answer.json()["snapshots"]] if answer.is_success else []

    def kill_control(self, number: signal.Signals = signal.SIGKILL) -> None:
        """The control plane dies; returns when the next one serves."""
        pid = self.home.control_pid()
        os.kill(pid, number)
        until(lambda: self.home.control_pid() not in (0, pid) and self.is_up(), "the next control plane")

    def is_up(self) -> bool:
        try:
            return self.rest.get("/status").is_success
        except httpx.TransportError:
            return False


class Pair:
    def __init__(self, stack: ExitStack) -> None:
        self.here, self.there = Site(stack), Site(stack)

    def wait(self, vm: str, newest: str, seconds: float = 60) -> None:
        def is_there() -> bool:
            try:
                return self.here.status(vm)["newest"] == newest
            except httpx.TransportError:
                return False

        until(is_there, f"{vm}@{newest} to be there", seconds)

    def compare(self, export: str) -> None:
        """Bit by bit."""
        run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", self.here.home.uri(export), self.there.home.uri(export))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Paired by an invitation; here has the path `far`, there the peer `origin`."""
    with ExitStack() as stack:
        made = Pair(stack)
        code = made.there.ask("PUT", "/replication/invitations/origin", vms=["*"])["code"]
        made.here.ask("POST", "/replication/paths", name="far", host="127.0.0.1", port=made.there.port, code=code)
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """24 MiB that nothing makes smaller."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    path = tmp_path / "random.raw"
    path.write_bytes(random.Random(seed).randbytes(24 * MEBIBYTE))
    return path


@pytest.fixture
def vm(pair: Pair, image: Path) -> str:
    """A VM of this test with an incompressible disk, a small one, and a snapshot s1."""
    name = f"vm-{next(_numbers)}"
    pair.here.home("vm", "create", name, "--disk", "data=4M", "--image", f"root={image}")
    write(pair.here, f"{name}/data", 1, 0)
    pair.here.home("snapshot", "create", name, "--name", "s1")
    return name


def write(site: Site, export: str, byte: int, mebibyte: int) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", f"write -P {byte} {mebibyte}M 64k", site.home.uri(export))


@pytest.fixture
def slow(pair: Pair) -> Iterator[None]:
    pair.here.ask("PATCH", "/replication/paths/far", throttle={"rate_bytes": SLOW_BYTES})
    yield
    pair.here.ask("PATCH", "/replication/paths/far", throttle={"rate_bytes": None})


def test_a_pairing_lets_each_end_know_the_other(pair: Pair) -> None:
    path = pair.here.ask("GET", "/replication/paths/far")
    assert path["key"] == pair.there.ask("GET", "/replication/identity")["key"]
    [peer] = pair.there.ask("GET", "/replication/peers")["peers"]
    assert (peer["name"], peer["key"]) == ("origin", pair.here.ask("GET", "/replication/identity")["key"])
    test = pair.here.ask("POST", "/replication/paths/far/test")
    assert (test["peer"], test["vms"], test["path_back"]) == ("origin", ["*"], None) and test["rtt_ms"] < 60_000


def test_snapshots_of_a_protected_vm_arrive_bit_by_bit_the_second_one_by_what_changed(pair: Pair, vm: str) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far", rpo_seconds=3600)
    pair.wait(vm, "s1")
    for disk in ("root", "data"):
        pair.compare(f"{vm}/{disk}@s1")
    write(pair.here, f"{vm}/data", 2, 2)
    pair.here.home("snapshot", "create", vm, "--name", "s2")
    pair.wait(vm, "s2")
    pair.compare(f"{vm}/data@s2")
    newest = pair.here.ask("GET", f"/replication/transfers?vm={vm}")["transfers"][0]
    assert newest["snapshot"] == "s2" and newest["logical_bytes"] == 65536 and newest["network_bytes"] < 65536
    assert pair.there.status(vm, "received")["state"] == "up to date"
    assert pair.there.ask("GET", f"/vms/{vm}")["disks"] == []


@pytest.mark.parametrize("which", ["here", "there"])
@pytest.mark.parametrize("process", ["control plane", "engine"])
def test_a_transfer_goes_on_when_a_process_was_killed(pair: Pair, vm: str, slow: None, which: str, process: str) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    until(lambda: pair.here.status(vm).get("network_bytes_per_second"), "data to flow")
    until(lambda: pair.there.status(vm, "received") and pair.here.status(vm)["state"] == "running", "it to run")
    site: Site = getattr(pair, which)
    if process == "engine":
        os.kill(site.home.engine_pid(), signal.SIGKILL)
    else:
        site.kill_control()
    pair.wait(vm, "s1", 120)
    pair.compare(f"{vm}/root@s1")
    sent = [one for one in pair.here.ask("GET", f"/replication/transfers?vm={vm}")["transfers"] if not one["error_code"]]
    assert len(sent) == 1


def test_a_control_plane_that_stops_cuts_transfers_within_seconds(pair: Pair, vm: str, slow: None) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    until(lambda: pair.here.status(vm).get("network_bytes_per_second"), "data to flow")
    pair.here.kill_control(signal.SIGTERM)
    pair.wait(vm, "s1")
    pair.compare(f"{vm}/root@s1")


def test_a_vm_is_promoted_reversed_and_promoted_back(pair: Pair, vm: str) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    pair.wait(vm, "s1")
    pair.there.ask("POST", f"/vms/{vm}/replication/promote")
    write(pair.there, f"{vm}/data", 7, 1)
    assert "replicate path add" in pair.here.refused("POST", f"/vms/{vm}/replication/reverse")
    code = pair.here.ask("PUT", "/replication/invitations/returning", vms=["nothing"])["code"]
    pair.there.ask("POST", "/replication/paths", name="back", host="127.0.0.1", port=pair.here.port, code=code)
    pair.here.ask("POST", f"/vms/{vm}/replication/reverse")
    until(lambda: pair.there.status(vm)["state"] == "up to date", "it to come back")
    newest = pair.there.status(vm)["newest"]
    pair.compare(f"{vm}/data@{newest}")
    moved = pair.there.ask("GET", f"/replication/transfers?vm={vm}")["transfers"][0]
    assert moved["direction"] == "sent" and moved["logical_bytes"] == 65536
    pair.here.ask("POST", f"/vms/{vm}/replication/promote")
    run_tool("qemu-io", "-f", "raw", "-r", "-c", "read -P 7 1M 64k", pair.here.home.uri(f"{vm}/data"))


def test_a_copy_and_a_clone_are_made_at_the_other_end(pair: Pair, vm: str) -> None:
    pair.here.home("replicate", "copy", f"{vm}@s1", "--path", "far", "--as", f"{vm}-copy")
    until(lambda: pair.there.rest.get(f"/vms/{vm}-copy").is_success, "the copy")
    run_tool(
        *("qemu-img", "compare", "-f", "raw", "-F", "raw"),
        *(pair.here.home.uri(f"{vm}/root@s1"), pair.there.home.uri(f"{vm}-copy/root")),
    )
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    pair.wait(vm, "s1")
    pair.here.home("replicate", "clone", f"{vm}@s1", f"{vm}-clone", "--path", "far")
    run_tool(
        *("qemu-img", "compare", "-f", "raw", "-F", "raw"),
        *(pair.here.home.uri(f"{vm}/data@s1"), pair.there.home.uri(f"{vm}-clone/data")),
    )


def test_a_copy_that_was_cancelled_goes_on_where_it_was(pair: Pair, vm: str, slow: None) -> None:
    asked = {"snapshot": "s1", "path": "far", "name": f"{vm}-copy"}
    job = pair.here.ask("POST", f"/vms/{vm}/replication/copy", **asked)["id"]
    until(lambda: pair.here.ask("GET", f"/jobs/{job}")["fraction"] > 0.3, "some of it to be there")
    pair.here.ask("DELETE", f"/jobs/{job}")
    until(lambda: pair.here.ask("GET", f"/jobs/{job}")["state"] == "cancelled", "the end")
    assert not pair.there.rest.get(f"/vms/{vm}-copy").is_success
    job = pair.here.ask("POST", f"/vms/{vm}/replication/copy", **asked)["id"]
    until(lambda: pair.here.ask("GET", f"/jobs/{job}")["state"] == "done", "the copy")
    assert pair.there.ask("GET", f"/vms/{vm}-copy")["disks"]
    rows = pair.here.ask("GET", f"/replication/transfers?vm={vm}")["transfers"]
    assert [row["error_code"] for row in rows] == [None, "unavailable"]
    assert sum(row["network_bytes"] for row in rows) < 1.1 * 24 * MEBIBYTE


def test_a_control_plane_ends_while_a_copy_waits_for_an_engine_that_hangs(pair: Pair, vm: str, slow: None) -> None:
    asked = {"snapshot": "s1", "path": "far", "name": f"{vm}-copy"}
    job = pair.here.ask("POST", f"/vms/{vm}/replication/copy", **asked)["id"]
    until(lambda: pair.here.ask("GET", f"/jobs/{job}")["fraction"] > 0.2, "some of it to be there")
    engine, control = pair.here.home.engine_pid(), pair.here.home.control_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        os.kill(control, signal.SIGTERM)
        until(lambda: pair.here.home.control_pid() != control, "the end of the control plane")
    finally:
        os.kill(engine, signal.SIGCONT)
    until(pair.here.is_up, "the next control plane")
    assert pair.here.home.engine_pid() == engine
    assert pair.here.ask("GET", f"/jobs/{job}")["state"] in ("interrupted", "cancelled")
    pair.here.home("replicate", "copy", f"{vm}@s1", "--path", "far", "--as", f"{vm}-copy")
    assert pair.there.ask("GET", f"/vms/{vm}-copy")["disks"]


def test_a_path_refuses_another_key_and_goes_on_with_the_one_that_it_is_told(pair: Pair, vm: str) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    pair.wait(vm, "s1")
    right, wrong = (site.ask("GET", "/replication/identity")["key"] for site in (pair.there, pair.here))
    assert pair.here.ask("PATCH", "/replication/paths/far", key=wrong)["key"] == wrong
    assert "path change PATH --key" in pair.here.refused("POST", "/replication/paths/far/test")
    write(pair.here, f"{vm}/data", 3, 3)
    pair.here.home("snapshot", "create", vm, "--name", "s2")
    status = until(lambda: (one := pair.here.status(vm))["state"] == "failed" and one, "the refusal")
    assert status["error_code"] == "not_allowed" and "path change PATH --key" in status["reason"]
    before = pair.here.ask("GET", "/replication/paths/far")["host"]
    assert "ssh-ed25519" in pair.here.refused("PATCH", "/replication/paths/far", host="192.0.2.9", key="no key")
    assert pair.here.ask("GET", "/replication/paths/far")["host"] == before
    pair.here.ask("PATCH", "/replication/paths/far", key=right)
    pair.wait(vm, "s2")
    newest = pair.here.ask("GET", f"/replication/transfers?vm={vm}")["transfers"][0]
    assert newest["snapshot"] == "s2" and newest["logical_bytes"] == 65536, "it goes on from where it was"


def test_an_engine_that_hangs_is_known_by_that_it_does_not_answer(pair: Pair) -> None:
    engine, client = pair.there.home.engine_pid(), EngineClient(pair.there.home.path / "run/engine.sock")
    assert client.answers(SECONDS_MAX)
    os.kill(engine, signal.SIGSTOP)
    try:
        assert not client.answers(0.2)
    finally:
        os.kill(engine, signal.SIGCONT)
    assert client.answers(SECONDS_MAX)


def test_a_vm_that_is_protected_no_more_stays_at_the_other_end_as_it_was(pair: Pair, vm: str) -> None:
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    pair.wait(vm, "s1")
    pair.here.ask("DELETE", f"/vms/{vm}/protections")
    pair.here.home("snapshot", "create", vm, "--name", "s2")
    assert pair.here.status(vm)["state"] == "not configured"
    assert pair.there.snapshots(vm) == ["s1"]


def test_a_home_that_is_no_peer_any_more_is_told_so(pair: Pair, vm: str) -> None:
    """Last: it undoes the pairing."""
    pair.there.ask("DELETE", "/replication/peers/origin?force=true")
    pair.here.ask("PUT", f"/vms/{vm}/protections/far")
    # the connection that it had may break first, which is a failure, too
    told = ("failed", "not_allowed")
    status = until(lambda: ((one := pair.here.status(vm))["state"], one["error_code"]) == told and one, "the refusal")
    assert pair.here.ask("GET", "/replication/paths/far")["error"] == status["reason"]
    pair.there.ask("POST", "/replication/peers", name="origin", key=pair.here.ask("GET", "/replication/identity")["key"], vms=["*"])
    pair.here.ask("POST", f"/vms/{vm}/replication/resume")
    pair.wait(vm, "s1")
