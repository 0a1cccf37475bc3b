"""Two served homes and a person's hands: paired by a code over loopback, and all that docs/replication.md tells to type."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.served import Home, read_until, run_tool, until
from tests.ports import free_address

DISK = "8M"
_numbers = itertools.count(1)


class Site(NamedTuple):
    """A home that listens for peers."""

    home: Home
    address: str

    def serve(self) -> None:
        self.home.serve("--replicate", self.address)


class Sites(NamedTuple):
    """Two of them: `a` has a path `b`, and is peer `a` there."""

    a: Site
    b: Site


def new_site() -> Site:
    site = Site(Home(), free_address())
    site.home.init("2G")
    site.serve()
    return site


def pair(a: Site, b: Site, *limits: str) -> None:
    code = b.home.json("replicate", "peer", "invite", "a", *limits)["code"]
    a.home("replicate", "path", "add", "b", b.address, "--code", code)


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    """Tests make VMs of their own in them and expect nothing of others'."""
    a, b = new_site(), new_site()
    try:
        pair(a, b)
        b.home("replicate", "path", "add", "a", a.address, "--peer", "a")
        yield Sites(a, b)
    finally:
        a.home.close()
        b.home.close()


@pytest.fixture
def apart() -> Iterator[Sites]:
    """Two homes of this test alone that do not know each other."""
    a, b = new_site(), new_site()
    try:
        yield Sites(a, b)
    finally:
        for site in (a, b):
            site.home.close()


@pytest.fixture
def name() -> str:
    """A VM name that no other test has."""
    return f"vm-{next(_numbers)}"


def write(home: Home, export: str, pattern: int, offset: int = 0, length: int = 1 << 20) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} {length}", "-c", "flush", home.uri(export))


def reads(home: Home, export: str, pattern: int, offset: int = 0, length: int = 1 << 20) -> bool:
    said = run_tool("qemu-io", "-r", "-f", "raw", "-c", f"read -P {pattern} {offset} {length}", home.uri(export))
    return "Pattern verification failed" not in said


def same(one: Home, other: Home, export: str, other_export: str | None = None) -> None:
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", one.uri(export), other.uri(other_export or export))


def make(home: Home, vm: str, pattern: int = 1) -> None:
    """A VM of two disks that hold something."""
    home("vm", "create", vm, "--disk", f"root={DISK}", "--disk", "data=4M")
    write(home, f"{vm}/root", pattern)
    write(home, f"{vm}/data", pattern + 100, 1 << 20, 65536)


def states(home: Home, vm: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = home.json("replicate", "status", vm)["replications"]
    return found


def state(home: Home, vm: str) -> dict[str, Any]:
    [found] = states(home, vm)
    return found


def names(home: Home, vm: str) -> list[str]:
    return [one["name"] for one in home.json("snapshot", "list", vm)["snapshots"]]


def wait_state(home: Home, vm: str, wanted: str) -> dict[str, Any]:
    return until(lambda: (found := state(home, vm))["state"] == wanted and found, f"{vm} to be {wanted}, not {state(home, vm)}")


def test_five_commands_bring_each_snapshot_to_the_other_home(apart: Sites) -> None:
    a, b = apart
    invited = b.home.run("replicate", "peer", "invite", "a", "--vm", "web*", "--space", "1G")
    assert invited.status == 0 and len(invited.stdout.splitlines()) == 1, invited
    assert f"blockdevctl replicate path add NAME {b.address} --code CODE" in invited.stderr
    added = a.home.run("replicate", "path", "add", "b", b.address, "--code", "-", stdin=invited.stdout)
    assert added.status == 0 and "paired with it; next: blockdevctl replicate protect VM --path b" in added.stdout, added
    make(a.home, "web")
    said = a.home("replicate", "protect", "web", "--path", "b", "--rpo", "2h", "--keep", "30d")
    assert said == "VM web is replicated over path b, no more than 2h behind; its snapshots that no schedule takes are kept there for 30d\n"
    wait_state(a.home, "web", "up to date")

    write(a.home, "web/root", 2)
    a.home("schedule", "set", "web", "often", "--at", "daily 02:30", "--keep", "3h", "--keep-remote", "2d")
    a.home("schedule", "run", "web", "often")
    a.home("snapshot", "create", "web", "--name", "by-hand")
    until(lambda: "by-hand" in names(b.home, "web"), "the last snapshot to come")
    sent = a.home.json("snapshot", "list", "web")["snapshots"]
    came = b.home.json("snapshot", "list", "web")["snapshots"]
    for field in ("name", "uuid", "created", "consistency", "size_bytes"):
        assert [one[field] for one in sent] == [one[field] for one in came], field
    assert {one["origin"] for one in came} == {"replication"}
    for one in sent:
        for disk in ("root", "data"):
            same(a.home, b.home, f"web/{disk}@{one['name']}")
    kept = [one["expires"] is not None for one in came]
    assert kept == [True] * 3 and came[1]["expires"] > sent[1]["expires"], "each end keeps by its own time"

    wait_state(a.home, "web", "up to date")
    told = a.home("replicate", "status").splitlines()
    assert told[0].split()[:3] == ["VM", "WHERE", "STATE"] and told[1].split()[:4] == ["web", "to", "b", "up"]
    assert "by-hand" in told[1] and a.home.run("replicate", "status", "--check").status == 0
    assert "to b" in a.home("vm", "list") and "replicated:" in a.home("vm", "show", "web")
    assert a.home.json("vm", "show", "web")["protected_over"] == ["b"]
    received = b.home.json("vm", "show", "web")
    assert received["received"]["peer"] == "a" and received["received"]["promoted"] is None
    assert "from a, read-only" in b.home("vm", "list")
    assert [one["newest_on"] for one in a.home.json("snapshot", "list", "web")["snapshots"]] == [[], [], ["b"]]
    assert a.home("snapshot", "list", "web").splitlines()[-1].endswith("  b")
    asked = a.home.run("snapshot", "delete", "web@by-hand")
    assert "it is the newest that path b has: what comes next is compared with an older one" in asked.error, asked
    history = a.home.json("replicate", "history", "web")["transfers"]
    assert [one["snapshot"] for one in history] == [one["name"] for one in reversed(sent)] and {one["error_code"] for one in history} == {None}
    assert "whole" in b.home("replicate", "history") and " from a " in b.home("replicate", "history")


def test_the_code_is_kept_nowhere_and_is_good_once(apart: Sites) -> None:
    a, b = apart
    code = b.home("replicate", "peer", "invite", "a").strip()
    wrong = a.home.run("replicate", "path", "add", "b", b.address, "--code", code[:-1] + ("A" if code[-1] != "A" else "B"))
    assert wrong.status != 0 and "code" in wrong.error and code not in wrong.error
    a.home("replicate", "path", "add", "b", b.address, "--code", code)
    a.home("replicate", "path", "remove", "b")
    again = a.home.run("replicate", "path", "add", "b2", b.address, "--code", code)
    assert again.status == 20 and "invite again" in again.error, again
    for site in apart:
        site.home.stop()
        kept = b"".join(path.read_bytes() for path in site.home.path.rglob("*") if path.is_file() and "segments" not in path.parts)
        assert code.encode() not in kept and code.replace("-", "").encode() not in kept
    [invited] = [one for one in jobs_of(b) if one["kind"] == "peer.invite"]
    assert invited["subject"] == "a" and code not in json.dumps(invited)


def jobs_of(site: Site) -> list[dict[str, Any]]:
    site.serve()
    found: list[dict[str, Any]] = site.home.json("job", "list")["jobs"]
    return found


def test_a_path_says_what_is_wrong_with_it(sites: Sites) -> None:
    a, b = sites.a.home, sites.b.home
    told = a("replicate", "path", "test", "b")
    assert "b works" in told and "known there as:  a" in told and "path back:       a" in told
    tested = a.json("replicate", "path", "test", "b")
    assert tested["peer"] == "a" and tested["vms"] == ["*"] and tested["path_back"] == "a" and tested["rtt_ms"] > 0
    own = a.json("replicate", "identity")["key"]
    nobody = free_address()
    a("replicate", "path", "add", "silent", nobody, "--key", own)
    failed = a.run("replicate", "path", "test", "silent")
    assert failed.status == 11 and nobody in failed.error
    make(a, "mute")
    failed = a.run("replicate", "copy", "mute", "--path", "silent")
    assert failed.status == 11 and nobody in failed.stderr, "nothing that was never reached is waited for"
    assert names(a, "mute") == []
    a("replicate", "path", "remove", "silent")
    a("replicate", "path", "add", "other", sites.b.address, "--key", own)
    failed = a.run("replicate", "path", "test", "other")
    assert failed.status == 20 and "key" in failed.error
    a("replicate", "path", "remove", "other")
    for arguments, status, words in (
        (("x", "127.0.0.1:0", "--key", own), 2, "HOST:PORT"),
        (("x", "127.0.0.1"), 2, "--code CODE of its invitation, --key KEY, or --peer PEER"),
        (("x", "127.0.0.1", "--key", "ssh-rsa AAAA"), 2, "replicate identity"),
        (("x", "127.0.0.1", "--code", "nonsense"), 2, "code"),
        (("b", "127.0.0.1", "--key", own), 4, "path b"),
        (("x", "127.0.0.1", "--peer", "nobody"), 3, "replicate peer list"),
        (("x/y", "127.0.0.1", "--key", own), 2, "cannot be used"),
    ):
        failed = a.run("replicate", "path", "add", *arguments)
        assert failed.status == status and words in failed.error, failed
    assert [one["name"] for one in a.json("replicate", "path", "list")["paths"]] == ["b"]
    identity = b.json("replicate", "identity")
    assert identity["listening"] == sites.b.address and identity["fingerprint"].startswith("SHA256:")
    assert a.json("replicate", "path", "show", "b")["key"] == identity["key"]


def test_a_home_that_is_not_known_is_told_so(apart: Sites) -> None:
    a, b = apart
    a.home("replicate", "path", "add", "b", b.address, "--key", b.home.json("replicate", "identity")["key"])
    failed = a.home.run("replicate", "path", "test", "b")
    assert failed.status == 20 and "peer" in failed.error
    key = a.home.path.parent / "a.pub"
    key.write_text(a.home.json("replicate", "identity")["key"] + "\n")
    b.home("replicate", "peer", "add", "a", "--key", key, "--no-vms")
    assert a.home.json("replicate", "path", "test", "b")["vms"] == []
    make(a.home, "web")
    a.home("replicate", "protect", "web", "--path", "b")
    failed_state = wait_state(a.home, "web", "failed")
    assert failed_state["error_code"] == "not_allowed" and "web" in failed_state["reason"]
    assert "is failed: " in a.home.run("replicate", "status", "--check").stderr
    assert "replicate peer change a --allow web" in failed_state["reason"]
    b.home("replicate", "peer", "change", "a", "--vm", "db")
    assert b.home.json("replicate", "peer", "change", "a", "--allow", "web", "--allow", "db")["vms"] == ["db", "web"]
    assert b.home.run("replicate", "peer", "change", "a", "--allow", "x", "--vm", "y").status == 2
    a.home("replicate", "resume", "web")
    wait_state(a.home, "web", "up to date")
    assert "web" in b.home("replicate", "peer", "show", "a")
    refused = b.home.run("replicate", "peer", "remove", "a")
    assert refused.status == 5 and "web" in refused.error
    assert "--yes" in b.home.run("replicate", "peer", "remove", "a", "--force").error
    b.home("replicate", "peer", "remove", "a", "--force", "--yes")
    assert b.home.json("vm", "show", "web")["received"] is None


def test_a_throttle_is_shown_changed_and_taken_away(sites: Sites) -> None:
    a = sites.a.home
    throttle = ("replicate", "path", "throttle", "b")
    assert "none" in a(*throttle)
    a(*throttle, "--rate", "50", "--window", "mon-fri 08:00-18:00=2.5", "--window", "22:00-06:00=none", "--zone", "Europe/Zurich")
    found = a.json(*throttle)["throttle"]
    assert found == {
        "rate_bytes": 50_000_000,
        "zone": "Europe/Zurich",
        "windows": [{"at": "mon-fri 08:00-18:00", "rate_bytes": 2_500_000}, {"at": "22:00-06:00", "rate_bytes": None}],
    }
    told = a(*throttle)
    assert "50 MB/s outside of the windows" in told and "2.5 MB/s mon-fri 08:00-18:00 (Europe/Zurich)" in told
    assert a.json(*throttle, "--rate", "none")["throttle"] == {**found, "rate_bytes": None}, "what is not said stays"
    for wrong in (("--rate", "x"), ("--window", "8=5"), ("--window", "noon"), ("--zone", "Mars/Base"), ("--clear", "--rate", "5")):
        assert a.run(*throttle, *wrong).status == 2, wrong
    cleared = a.json(*throttle, "--clear")["throttle"]
    assert (cleared["rate_bytes"], cleared["windows"]) == (None, [])


def test_now_waits_until_it_is_there_and_pause_holds_it_back(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    make(a, name)
    a("replicate", "protect", name, "--path", "b")
    write(a, f"{name}/root", 7, length=4 << 20)
    said = a("replicate", "now", name, "--wait")
    taken = names(a, name)[-1]
    assert said == f"{name}@{taken} is at the other end of b\n" and names(b, name)[-1] == taken
    a("replicate", "pause", name)
    assert state(a, name)["state"] == "paused"
    refused = a.run("replicate", "now", name)
    assert refused.status == 5 and f"replicate resume {name}" in refused.error
    a("snapshot", "create", name, "--name", "held")
    assert state(a, name)["snapshots_remaining"] == 1 and "held" not in names(b, name)
    a("replicate", "resume", name, "--path", "b")
    until(lambda: "held" in names(b, name), "what was held back")
    kinds = {one["kind"] for one in a.json("job", "list", "--subject", name)["jobs"]}
    assert {"replicate.protect", "replicate.now", "replicate.pause", "replicate.resume"} <= kinds
    a("replicate", "unprotect", name)
    assert state(a, name)["state"] == "not configured" and a.json("vm", "show", name)["protected_over"] == []
    assert a.run("replicate", "now", name).status == 3


def test_terms_that_are_not_said_stay(sites: Sites, name: str) -> None:
    a = sites.a.home
    make(a, name)
    a("replicate", "protect", name, "--path", "b", "--rpo", "2h", "--keep", "30d")
    changed = a.json("replicate", "protect", name, "--path", "b", "--rpo", "3h")
    assert (changed["rpo_seconds"], changed["keep_seconds"]) == (3 * 3600, 30 * 86400)
    changed = a.json("replicate", "protect", name, "--path", "b", "--rpo", "none", "--keep", "forever")
    assert (changed["rpo_seconds"], changed["keep_seconds"]) == (None, None)
    for wrong in (("--path", "nowhere"), ("--path", "b", "--rpo", "soon"), ()):
        assert a.run("replicate", "protect", name, *wrong).status in (2, 3), wrong
    assert a.run("replicate", "protect", "no-such", "--path", "b").status == 3
    refused = a.run("replicate", "path", "remove", "b")
    assert refused.status == 5 and "protected" in refused.error
    assert "--yes" in a.run("replicate", "path", "remove", "b", "--force").error


def test_check_fails_when_the_other_end_is_behind_its_rpo(apart: Sites) -> None:
    a, b = apart
    pair(a, b)
    make(a.home, "web")
    a.home("replicate", "protect", "web", "--path", "b", "--rpo", "1s")
    wait_state(a.home, "web", "up to date")
    b.home.stop()
    a.home("snapshot", "create", "web", "--name", "late")
    checked = until(lambda: (run := a.home.run("replicate", "status", "--check")).status and run, "an alert")
    assert checked.status == 18 and "VM web to b" in checked.stderr and "replicate status" in checked.stderr
    assert state(a.home, "web")["level"] == "error"
    until(lambda: any(one["kind"] == "replication" for one in a.home.json("events")["events"]), "the event")
    b.serve()
    until(lambda: "late" in names(b.home, "web"), "the next try", 240)
    until(lambda: a.home.run("replicate", "status", "--check").status == 0, "this end to know that it arrived")


def test_a_home_that_moved_is_reached_at_its_new_address(apart: Sites) -> None:
    a, b = apart
    pair(a, b)
    make(a.home, "web")
    a.home("replicate", "protect", "web", "--path", "b")
    wait_state(a.home, "web", "up to date")
    b.home.stop()
    moved = Site(b.home, free_address())
    moved.serve()
    a.home("snapshot", "create", "web", "--name", "late")
    said = a.home("replicate", "path", "change", "b", "--to", moved.address, "--level", "0")
    assert said == f"path b leads to {moved.address} and does not compress\n"
    until(lambda: "late" in names(b.home, "web"), "what was taken meanwhile")
    own = b.home.json("replicate", "identity")
    said = a.home("replicate", "path", "change", "b", "--key", own["key"])
    assert said == f"path b leads to {moved.address}, {own['fingerprint']}, and does not compress\n"
    for wrong in ((), ("--to", "nowhere:0"), ("--level", "20")):
        assert a.home.run("replicate", "path", "change", "b", *wrong).status == 2, wrong


def test_reverse_takes_nothing_from_a_home_that_nobody_reaches(apart: Sites) -> None:
    a, b = apart
    pair(a, b)
    make(a.home, "web")
    a.home("replicate", "protect", "web", "--path", "b")
    wait_state(a.home, "web", "up to date")
    a.home.stop()
    a.home.serve()
    b.home("replicate", "promote", "web", "--yes")
    b.home("replicate", "path", "add", "a", a.address, "--peer", "a")
    refused = a.home.run("replicate", "reverse", "web", "--yes")
    assert refused.status == 11 and "path a" in refused.error and "serve --replicate" in refused.error
    assert len(a.home.json("vm", "show", "web")["disks"]) == 2


def test_a_received_vm_is_read_and_cloned_and_not_changed(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    make(a, name, 5)
    a("replicate", "protect", name, "--path", "b")
    a("replicate", "now", name, "--wait")
    newest = names(b, name)[-1]
    for command in (("snapshot", "create", name), ("restore", f"{name}@{newest}", "--yes"), ("disk", "add", f"{name}/more", "1M")):
        refused = b.run(*command)
        assert refused.status != 0 and f"replicate promote {name}" in refused.error, refused
    b("clone", f"{name}@{newest}", f"{name}-test")
    same(a, b, f"{name}/root@{newest}", f"{name}-test/root")
    write(b, f"{name}-test/root", 6)
    made = a.json("replicate", "clone", f"{name}@{newest}", f"{name}-far", "--path", "b")
    assert made["vm"] == f"{name}-far"
    same(a, b, f"{name}/data@{newest}", f"{name}-far/data")
    taken = a.run("replicate", "clone", name, f"{name}-far", "--path", "b")
    assert taken.status == 4 and f"{name}-far" in taken.error
    write(a, f"{name}/root", 8)
    a("replicate", "now", name, "--wait")
    same(a, b, f"{name}/root@{names(a, name)[-1]}")


def test_a_lost_site_a_way_back_and_a_planned_move_home(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    make(a, name, 10)
    a("replicate", "protect", name, "--path", "b", "--rpo", "4h")
    a("replicate", "now", name, "--wait")
    write(a, f"{name}/root", 11, 4 << 20)  # never sent: lost with the site, but kept when it is back
    assert "--yes" in b.run("replicate", "promote", name).error
    early = a.run("replicate", "reverse", name, "--yes")
    assert early.status == 5 and f"replicate promote {name}" in early.error
    promoted = b.json("replicate", "promote", name, "--yes")
    assert promoted["peer"] == "a" and set(promoted["disks"]) == {"root", "data"}
    assert b.run("replicate", "promote", name, "--yes").status == 5
    assert reads(b, f"{name}/root", 10) and state(b, name)["state"] == "promoted"
    write(b, f"{name}/root", 12, 2 << 20)
    a("snapshot", "create", name, "--name", "refused")
    refused = wait_state(a, name, "failed")
    assert "promoted" in refused["reason"]

    reversed_ = a.json("replicate", "reverse", name, "--yes")
    assert reversed_["peer"] and reversed_["path"] == "a"
    until(lambda: any(one["direction"] == "sent" and one["state"] == "up to date" for one in states(b, name)), "the way back")
    b("replicate", "now", name, "--wait")
    newest = names(b, name)[-1]
    same(a, b, f"{name}/root@{newest}")
    assert reads(a, f"{name}/root@{newest}", 12, 2 << 20)
    safety = reversed_["safety_snapshot"]
    assert safety is None or reads(a, f"{name}/root@{safety}", 11, 4 << 20)
    assert reads(a, f"{name}/root@{safety or 'refused'}", 11, 4 << 20), "nothing that was written at the lost site is lost"
    [back] = [one for one in b.json("replicate", "history", name)["transfers"] if one["snapshot"] == newest]
    assert back["network_bytes"] < 1 << 20, "only what differs moves"

    write(b, f"{name}/root", 13)
    b("replicate", "now", name, "--wait")
    a("replicate", "promote", name, "--yes")
    b("replicate", "reverse", name, "--yes")
    assert reads(a, f"{name}/root", 13) and reads(a, f"{name}/root", 12, 2 << 20)
    a("replicate", "now", name, "--wait")
    assert state_of(a, name, "sent")["rpo_seconds"] == 4 * 3600, "the terms come home, too"
    same(a, b, f"{name}/root@{names(a, name)[-1]}")


def state_of(home: Home, vm: str, direction: str) -> dict[str, Any]:
    [found] = [one for one in states(home, vm) if one["direction"] == direction]
    return found


def test_one_copy_is_a_vm_of_its_own(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    make(a, name, 20)
    made = a.json("replicate", "copy", name, "--path", "b", "--as", f"{name}-copy")
    assert made["vm"] == f"{name}-copy" and made["path"] == "b"
    copied = b.json("vm", "show", f"{name}-copy")
    assert copied["received"] is None and copied["uuid"] != a.json("vm", "show", name)["uuid"]
    same(a, b, f"{name}/root", f"{name}-copy/root")
    write(b, f"{name}-copy/data", 21)
    again = a.run("replicate", "copy", name, "--path", "b", "--as", f"{name}-copy")
    assert again.status == 4 and f"{name}-copy" in again.error
    detached = a.json("replicate", "copy", name, "--path", "b", "--detach")
    assert detached["kind"] == "replicate.copy" and detached["subject"] == name
    a("job", "watch", detached["id"])
    same(a, b, f"{name}/root")
    assert a.run("replicate", "copy", name, "--path", "nowhere").status == 3
    assert a.run("replicate", "copy", f"{name}@none", "--path", "b").status == 3


def test_the_snapshot_that_a_copy_takes_is_not_replicated_and_does_not_stay(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    make(a, name, 20)
    a("replicate", "protect", name, "--path", "b")
    wait_state(a, name, "up to date")
    before = names(a, name)
    a("replicate", "copy", name, "--path", "b", "--as", f"{name}-copy")
    assert names(a, name) == before == names(b, name)
    told = [one["message"] for one in a.json("events", "--kind", "replication", "--vm", name)["events"]]
    assert not [one for one in told if "passed over" in one]
    [copied] = b.json("snapshot", "list", f"{name}-copy")["snapshots"]
    assert copied["description"] == "", "nothing that a start of the other home would remove"


def test_a_seed_that_was_carried_saves_the_first_transfer(sites: Sites, name: str, tmp_path: Path) -> None:
    a, b = sites.a.home, sites.b.home
    a("vm", "create", name, "--disk", f"root={DISK}")
    random = tmp_path / "random.raw"
    random.write_bytes(bytes((number * number * 7919 + number) % 251 for number in range(2 << 20)))
    a("disk", "import", f"{name}/more", random, "--format", "raw")
    a("snapshot", "create", name, "--name", "seed")
    a("snapshot", "export", f"{name}@seed", tmp_path / "seed.bds")
    b("snapshot", "import", tmp_path / "seed.bds")
    assert "--yes" in b.run("replicate", "receive", name, "--from", "a").error
    adopted = b.json("replicate", "receive", name, "--from", "a", "--yes")
    assert adopted == {"vm": name, "peer": "a", "safety_snapshot": None, "path": None}
    write(a, f"{name}/root", 30)
    a("replicate", "protect", name, "--path", "b")
    a("replicate", "now", name, "--wait")
    newest = names(a, name)[-1]
    same(a, b, f"{name}/more@{newest}")
    [moved] = [one for one in a.json("replicate", "history", name)["transfers"] if one["snapshot"] == newest]
    assert moved["logical_bytes"] <= 2 << 20 and names(b, name) == names(a, name)


def test_a_vm_goes_to_two_homes_and_one_of_them_can_be_paused(sites: Sites, name: str) -> None:
    a, b = sites.a.home, sites.b.home
    third = new_site()
    try:
        code = third.home.json("replicate", "peer", "invite", "a", "--vm", name)["code"]
        a("replicate", "path", "add", "c", third.address, "--code", code)
        make(a, name, 40)
        for path in ("b", "c"):
            a("replicate", "protect", name, "--path", path)
        a("replicate", "now", name, "--wait")
        assert names(b, name) == names(third.home, name) == names(a, name)
        a("replicate", "pause", name, "--path", "c")
        done = a.json("replicate", "now", name, "--wait")
        assert done["paths"] == ["b"] and done["snapshot"] in names(b, name) and done["snapshot"] not in names(third.home, name)
        assert [one["way"] for one in states(a, name)] == ["b", "c"]
        a("replicate", "path", "remove", "c", "--force", "--yes")
        assert a.json("vm", "show", name)["protected_over"] == ["b"]
    finally:
        third.home.close()


def test_watch_shows_the_status_again_and_again(sites: Sites, name: str) -> None:
    a = sites.a.home
    make(a, name)
    a("replicate", "protect", name, "--path", "b")
    watching = a.start_command("replicate", "status", name, "--watch", "--json")
    try:
        lines = [read_until(watching, "{")[-1] for _ in range(2)]
        assert all(json.loads(line)["replications"][0]["vm"] == name for line in lines)
    finally:
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=60)
    assert (watching.returncode, told) == (0, "")
