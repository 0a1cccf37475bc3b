"""Operations on VMs whose disks are LUNs, with and without an initiator that is logged in.  Runs in the guest (test_operations.py)."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
from blockdev.targets.chap import ChapFiles
from blockdev.targets.claim import DIRECTORY as DIRECTORY_OF_CLAIMS
from blockdev.targets.claim import Claim

from tests.targets.facts import fact
from tests.targets.initiator import BUSY_S, OURS, Chap, Refused, Session, login, run, sizes, until
from tests.targets.world import DIRECTORY, MEBIBYTE, World

OTHER = "iqn.2026-11.org.example:other"
CONFIGFS = Path("/sys/kernel/config/target")


def refused(world: World, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    """By what words."""
    answer: httpx.Response = world.rest.request(method, path, json=body)
    assert answer.status_code == 409, f"{method} {path}: {answer.status_code} {answer.text}"
    return str(answer.json()["error"]["message"])


def is_up(world: World, vm: str, luns: int) -> Any:
    """The target, once it is up with so many LUNs."""
    return until(lambda: (one := world.target(vm))["state"] == "up" and len(one["luns"]) == luns and one, f"{luns} LUNs of {vm}")


def numbers(target: Any) -> dict[int, str]:
    return {lun["number"]: lun["export"] for lun in target["luns"]}


def serials(target: Any) -> dict[str, str]:
    return {lun["export"]: lun["serial"] for lun in target["luns"]}


def write(disk: Path, byte: int) -> str:
    """A MiB, durable; its digest."""
    data = bytes([byte]) * MEBIBYTE
    with open(disk, "r+b", buffering=0) as file:
        file.write(data)
    run("blockdev", "--flushbufs", disk)
    return hashlib.sha256(data).hexdigest()


def read(disk: Path) -> str:
    """The digest of the first MiB, from the target."""
    return run("sh", "-c", f"dd if={disk} bs=1M count=1 iflag=direct status=none | sha256sum").split()[0]


def session_of(world: World) -> Session:
    found: Session = world.notes["session"]
    return found


def session_numbers() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/iscsi_session").glob("session*"))


@fact
def a_rename_is_noticed_by_nobody_who_is_logged_in(world: World) -> None:
    """Not after the death of the engine either, when the devices look for their disks by the new names."""
    world.make_vm("web", root=64, data=32)
    before = world.offer("web")
    world.notes["session"] = login(before["iqn"])
    root, _data = session_of(world).disks(2)
    digest = write(root, 1)
    sessions = session_numbers()
    world.ask("PATCH", "/vms/web", {"name": "shop"})
    after = is_up(world, "shop", 2)
    assert after["iqn"] == before["iqn"] and [one["serial"] for one in after["luns"]] == [one["serial"] for one in before["luns"]]
    assert numbers(after) == {0: "shop/root", 1: "shop/data"} and read(root) == digest
    world.kill_engine()
    assert read(root) == digest and session_numbers() == sessions


@fact
def a_disk_that_is_added_becomes_a_lun_and_a_removed_ones_number_is_given_to_no_other(world: World) -> None:
    world.ask("POST", "/vms/shop/disks", {"name": "more", "size_bytes": 16 * MEBIBYTE})
    assert numbers(is_up(world, "shop", 3))[2] == "shop/more"
    session_of(world).rescan()
    assert len(session_of(world).disks(3)) == 3
    sessions = session_numbers()
    assert OURS in refused(world, "DELETE", "/vms/shop/disks/more")
    world.ask("DELETE", "/vms/shop/disks/more?force=true")
    is_up(world, "shop", 2)
    (Path("/sys/block") / session_of(world).devices()[2] / "device/delete").write_text("1")  # as Linux does not by itself
    world.ask("POST", "/vms/shop/disks", {"name": "more", "size_bytes": 8 * MEBIBYTE})
    assert numbers(is_up(world, "shop", 3)) == {0: "shop/root", 1: "shop/data", 3: "shop/more"}
    assert session_numbers() == sessions, "nobody was cut off"


@fact
def a_snapshot_whose_disks_are_luns_is_kept_while_somebody_is_logged_in(world: World) -> None:
    world.snapshot("shop", "s1")
    world.ask("PATCH", "/vms/shop/target", {"snapshots": ["s1"]})
    shown = is_up(world, "shop", 6)
    assert [lun["number"] for lun in shown["luns"] if lun["snapshot"] == "s1"] == [4, 5, 6]
    session_of(world).rescan()
    assert [sizes(disk)["ro"] for disk in session_of(world).disks(6)] == [False] * 3 + [True] * 3
    assert OURS in refused(world, "DELETE", "/vms/shop/snapshots/s1")


@fact
def what_would_take_a_disk_away_is_refused_while_somebody_is_logged_in(world: World) -> None:
    for method, path, body in (
        ("POST", "/vms/shop/restore", {"snapshot": "s1"}),
        ("DELETE", "/vms/shop/disks/data", None),
        ("PATCH", "/vms/shop/disks/data", {"size_bytes": MEBIBYTE, "force_shrink": True}),
        ("DELETE", "/vms/shop", None),
        ("DELETE", "/vms/shop/target", None),
    ):
        assert OURS in refused(world, method, path, body), (method, path)
    assert world.target("shop")["state"] == "up" and world.target("shop")["sessions"] == [OURS]


@fact
def a_restore_by_force_cuts_initiators_off_and_they_come_back_by_themselves(world: World) -> None:
    root = session_of(world).disks(6)[0]
    before, wanted = serials(world.target("shop")), read(root)
    write(root, 2)
    done = world.ask("POST", "/vms/shop/restore", {"snapshot": "s1", "force": True})
    assert done["cut_off"] == [f"target of shop by {OURS}"]
    assert serials(is_up(world, "shop", 6)) == before
    until(lambda: world.target("shop")["sessions"] == [OURS], "the initiator's next login")
    until(lambda: all(path.read_text().strip() == "LOGGED_IN" for path in Path("/sys/class/iscsi_session").glob("*/state")), "the session")
    assert read(root) == wanted


@fact
def without_sessions_everything_goes_as_without_a_target(world: World) -> None:
    session_of(world).logout()
    before = serials(is_up(world, "shop", 6))
    world.ask("POST", "/vms/shop/restore", {"snapshot": "s1", "disk": "data"})
    world.ask("PATCH", "/vms/shop/disks/more", {"size_bytes": 4 * MEBIBYTE, "force_shrink": True})
    image = DIRECTORY / "image.raw"
    image.write_bytes(bytes([7]) * MEBIBYTE)
    world.home("disk", "import", "shop/data", image, "--format", "raw", "--replace", "--yes")
    assert serials(is_up(world, "shop", 6)) == before
    world.ask("DELETE", "/vms/shop/snapshots/s1")
    assert numbers(is_up(world, "shop", 3)) == {0: "shop/root", 1: "shop/data", 3: "shop/more"}
    session = world.notes["session"] = login(world.target("shop")["iqn"])
    _root, data, more = session.disks(3)
    assert read(data) == hashlib.sha256(image.read_bytes()).hexdigest()
    assert sizes(more)["size"] == 4 * MEBIBYTE


@fact
def a_copy_of_the_home_is_told_whose_the_targets_are(world: World) -> None:
    [lock] = DIRECTORY_OF_CLAIMS.iterdir()
    said = Claim(lock.name.removeprefix("targets-"), Path("/srv/copy")).missing()
    assert said is not None and f"those of {world.home.path} on this machine" in said, said


@fact
def a_clone_has_a_target_of_its_own_with_other_serials(world: World) -> None:
    world.ask("POST", "/vms/shop/clones", {"name": "copy"})
    made = world.offer("copy")
    assert made["iqn"] != world.target("shop")["iqn"]
    assert not set(serials(made).values()) & set(serials(world.target("shop")).values())
    session = login(made["iqn"])
    assert read(session.disks(3)[0]) == read(session_of(world).disks(3)[0])
    session.logout()


@fact
def an_initiator_that_is_taken_off_the_list_is_logged_out_and_others_are_not(world: World) -> None:
    sessions = session_numbers()
    world.ask("PATCH", "/vms/copy/target", {"initiators": [OURS, OTHER]})
    session = login(world.target("copy")["iqn"], initiator=OTHER)
    until(lambda: world.target("copy")["sessions"] == [OTHER], "the other initiator's login")
    world.ask("PATCH", "/vms/copy/target", {"initiators": [OURS]})
    assert world.target("copy")["sessions"] == []
    session.logout()
    try:
        login(world.target("copy")["iqn"], initiator=OTHER)
        raise AssertionError("it was let in")
    except Refused:
        pass
    assert session_numbers() == sessions and world.target("shop")["sessions"] == [OURS]


@fact
def a_target_whose_secrets_are_lost_is_not_offered_without(world: World) -> None:
    first, second = Chap("me", "topsecret12345"), Chap("me", "another-secret9")
    world.ask("PATCH", "/vms/copy/target", {"chap": vars(first)})
    iqn = world.target("copy")["iqn"]
    login(iqn, chap=first).logout()
    [file] = (world.home.path / "keys/targets").iterdir()
    assert ChapFiles(file.parent).read(file.name).chap
    file.unlink()
    world.ask("PATCH", "/vms/copy", {"description": "that something was changed"})
    shown = until(lambda: "secrets are missing" in " ".join((one := world.target("copy"))["reasons"]) and one, "the target to go")
    assert shown["state"] == "unavailable" and not (CONFIGFS / "iscsi" / iqn).exists()
    assert [one["kind"] for one in world.ask("GET", "/events?kind=target")["events"]] == ["target"]
    world.ask("PATCH", "/vms/copy/target", {"chap": vars(second)})
    for who in (None, first):
        try:
            login(iqn, chap=who)
            raise AssertionError(f"{who} was let in")
        except Refused:
            pass
    login(iqn, chap=second).logout()
    until(lambda: len(world.ask("GET", "/events?kind=target")["events"]) == 2, "word that it is up again")


@fact
def a_vm_that_is_received_has_luns_of_snapshots_only_until_it_is_promoted(world: World) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/elsewhere")
    world.ask("POST", "/replication/peers", {"name": "elsewhere", "key": Path("/tmp/elsewhere.pub").read_text().strip(), "vms": ["*"]})
    world.snapshot("copy", "kept")
    world.ask("PATCH", "/vms/copy/target", {"chap": None, "snapshots": ["kept"]})
    session = login(is_up(world, "copy", 6)["iqn"])
    wanted = read(session.disks(6)[0])
    assert OURS in refused(world, "POST", "/vms/copy/replication/receive", {"peer": "elsewhere"})
    session.logout()
    world.ask("POST", "/vms/copy/replication/receive", {"peer": "elsewhere"})
    received = is_up(world, "copy", 3)
    assert {lun["snapshot"] for lun in received["luns"]} == {"kept"}
    world.ask("POST", "/vms/copy/replication/promote", {})
    promoted = is_up(world, "copy", 6)
    session = login(promoted["iqn"])
    numbered = [lun["export"] for lun in sorted(promoted["luns"], key=lambda lun: lun["number"])]
    assert read(session.disks(6)[numbered.index("copy/root")]) == wanted
    session.logout()


@fact
def who_only_reads_does_not_wait_for_an_engine_that_hangs(world: World) -> None:
    """A target is brought up meanwhile, which waits for the engine's answer to each handshake, 10 s."""
    world.make_vm("slow", root=16, data=16)
    answers: list[httpx.Response] = []
    body = {"initiators": [OURS], "portals": ["127.0.0.1:3260"]}
    with world.home.rest() as client:
        adding = threading.Thread(target=lambda: answers.append(client.post("/vms/slow/target", json=body, timeout=BUSY_S)))
        engine = world.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        try:
            adding.start()
            until(lambda: world.rest.get("/vms/slow/target").is_success, "the target in the catalog")
            shown = world.target("slow")
            assert (shown["state"], shown["reasons"][0]) == ("unavailable", "the kernel has not been brought to it yet"), shown
            states = {one["vm"]: one["state"] for one in world.ask("GET", "/targets")["targets"]}
            assert states == {"copy": "up", "shop": "up", "slow": "unavailable"}
            assert adding.is_alive(), "it did not wait for the engine"
        finally:
            os.kill(engine, signal.SIGCONT)
        adding.join()
    assert answers[0].status_code == 201, answers[0].text
    is_up(world, "slow", 2)


@fact
def a_vm_that_is_deleted_by_force_leaves_nothing_in_the_kernel(world: World) -> None:
    world.ask("DELETE", "/vms/copy")
    world.ask("DELETE", "/vms/slow")
    world.ask("DELETE", "/vms/shop?force=true")
    until(lambda: not list((CONFIGFS / "iscsi").glob("iqn.*")), "the targets to go")
    until(lambda: not list((CONFIGFS / "core").glob("iblock_*/*")), "the backstores to go")
    until(lambda: not list(Path("/sys/block").glob("nbd*/pid")), "the devices to go")
    until(lambda: not list((world.home.path / "keys/targets").iterdir()), "the secrets to go")


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    World(DIRECTORY).play(sys.modules[__name__], "1G")


if __name__ == "__main__":
    main()
