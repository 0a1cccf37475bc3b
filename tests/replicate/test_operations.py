"""What the service does with two homes, whose messages go straight from one to the other."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random, randrange
from typing import Any
from uuid import UUID, uuid4

import pytest

from blockdev.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    NotAllowed,
    NotFound,
    PoolFull,
    ReadOnly,
    Unavailable,
)
from blockdev.quiesce.snapshots import take_snapshot
from blockdev.replicate import lanes, pulse, service
from blockdev.replicate.messages import Kind
from blockdev.replicate.paths import PATHS_OF_HOME_MAX
from blockdev.replicate.server import CONNECTIONS_OF_PEER_MAX
from blockdev.vmmap.catalog_replication import PathRow
from blockdev.vmmap.model import Terms
from tests.cli.served import until
from tests.quiesce.agent_stand_in import THAW, StandIn, agent, well_behaved
from tests.replicate.two_homes import Site, World, a_key, world

__all__ = ["agent", "world"]
MEBIBYTE = 1 << 20


def test_a_protected_vm_is_received_snapshot_by_snapshot_without_disks(world: World) -> None:
    world.here.service.protect("web", "far", rpo_seconds=3600)
    status = world.wait()
    assert (status.newest, status.lag_seconds, status.snapshots_remaining, status.bytes_remaining) == ("s1", 0, 0, 0)
    world.here.write("web/data", 3, b"second")
    world.here.vms.create_snapshot("web", "s2")
    until(lambda: [one.name for one in world.there.vms.list_snapshots("web")] == ["s1", "s2"], "both")
    assert world.there.vms.show_vm("web").disks == []
    assert world.there.read("web/data@s2", 3) == b"second" and world.there.read("web/root@s1", 0) == b"first"
    received = until(
        lambda: (one := world.there.status("web", "received")).state == "up to date" and one, "the end of it there"
    )
    assert (received.way, received.rpo_seconds, received.newest) == ("origin", 3600, "s2")
    assert world.there.events() == ["info web: it is received from peer origin now; its first snapshot is here"]


def test_both_ends_keep_one_row_of_each_transfer(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    for site, direction, way in ((world.here, "sent", "far"), (world.there, "received", "origin")):
        [row] = until(lambda site=site: site.service.history("web"), "the row")  # type: ignore[misc]
        assert (row.direction, row.way, row.snapshot, row.error_code) == (direction, way, "s1", None)
        assert row.logical_bytes == 4096 and row.network_bytes > 0


def test_a_cut_costs_a_row_only_if_something_had_come_and_the_transfer_goes_on_by_itself(world: World) -> None:
    for place in range(300):
        world.here.write("web/root", place, b"block %d" % place)
    world.here.vms.create_snapshot("web", "s2")
    seen = 0

    def cut_once(message: bytes) -> bytes | None:
        nonlocal seen
        seen += 1
        return None if seen == 5 else message

    world.net.alter = cut_once
    world.here.service.protect("web", "far")
    world.wait()
    assert seen > 5
    assert world.there.read("web/root@s2", 299) == b"block 299"
    assert {row.error_code for row in world.here.service.history("web")} >= {None}
    assert world.here.events() == []


@pytest.mark.parametrize("step", ["insert_receipt", "delete_receipt", "note_replicated"])
def test_a_catalog_that_cannot_be_written_once_costs_another_try(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """At the beginning, behind the commit point, and at the sender when all is there."""
    site = world.here if step == "note_replicated" else world.there
    write, failed = getattr(site.catalog, step), []

    def fail_once(*arguments: Any) -> Any:
        if not failed:
            failed.append(step)
            raise PoolFull("the file system of the catalog is full")
        return write(*arguments)

    monkeypatch.setattr(site.catalog, step, fail_once)
    world.here.service.protect("web", "far")
    until(lambda: failed and world.here.status("web").state == "failed", "the failure", seconds=60)
    assert world.here.status("web").error_code == "pool_full"
    world.here.service.resume("web")
    world.wait()
    assert world.there.read("web/root@s1", 0) == b"first" and world.there.catalog.receipts() == []
    assert not [thing.name for thing in world.there.engine.objects() if "~" in str(thing.name)]


def test_replication_stops_although_an_engine_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, busy = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        busy.set()
        gate.wait()
        raise Unavailable("the engine has gone")

    monkeypatch.setattr(service, "STOP_SECONDS_MAX", 0.1)
    monkeypatch.setattr(world.there.engine, "known", hang)
    try:
        world.here.service.protect("web", "far")
        assert busy.wait(60)
        world.here.service.stop()
        [hung] = [thread for thread in threading.enumerate() if thread.name == "send web"]
    finally:
        gate.set()
    hung.join(60)
    assert not hung.is_alive()


def test_a_link_that_is_down_is_tried_until_it_is_up(world: World) -> None:
    world.net.is_down = True
    world.here.service.protect("web", "far")
    status = until(lambda: (one := world.here.status("web")).reason and one, "a failure")
    assert (status.state, status.error_code, status.level) == ("scheduled", "unavailable", "ok")
    assert status.next_try is not None and status.snapshots_remaining == 1
    world.net.is_down = False
    world.wait()


def test_a_name_that_the_peer_may_not_send_is_refused_until_it_may(world: World) -> None:
    world.there.service.change_peer("origin", {"vms": ["db-*"]})
    world.here.service.protect("web", "far")
    status = until(lambda: (one := world.here.status("web")).state == "failed" and one, "the refusal")
    assert status.error_code == "not_allowed" and "may not send VM web" in (status.reason or "")
    world.there.service.change_peer("origin", {"vms": ["*"]})
    world.here.service.resume("web")
    world.wait()


def test_promoted_vms_are_refused_from_their_source_and_go_on_by_themselves(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    with pytest.raises(ReadOnly):
        world.there.vms.create_snapshot("web", "mine")
    promoted = world.there.service.promote("web")
    assert (promoted.snapshot, promoted.peer, promoted.disks) == ("s1", "origin", ["root", "data"])
    assert world.there.read("web/root", 0) == b"first"
    assert world.there.status("web", "received").state == "promoted"
    world.here.vms.create_snapshot("web", "s2")
    status = until(lambda: (one := world.here.status("web")).state == "failed" and one, "the refusal")
    assert "promoted" in (status.reason or "")


def test_a_reverse_sends_back_only_what_differs_and_keeps_what_was_here(world: World) -> None:
    for place in range(200):
        world.here.write("web/root", place, b"block %d" % place)
    world.here.vms.create_snapshot("web", "s2")
    world.here.service.protect("web", "far")
    world.wait()
    with pytest.raises(Busy, match="not promoted"):
        world.here.service.reverse("web")
    world.there.service.promote("web")
    with pytest.raises(Busy, match="replicate path add"):
        world.here.service.reverse("web")
    world.there.service.add_path("back", "here.example", key=world.here.key)
    world.here.write("web/root", 7, b"lost")
    world.there.write("web/root", 7, b"won")
    done = world.here.service.reverse("web")
    assert (done.peer, done.path) == ("far", "back") and done.safety_snapshot is not None
    until(lambda: world.there.status("web").state == "up to date", "it to come back")
    [newest] = [one for one in world.here.vms.list_snapshots("web") if one.origin == "replication"]
    assert world.here.read(f"web/root@{newest.name}", 7) == b"won"
    assert world.here.read(f"web/root@{done.safety_snapshot}", 7) == b"lost"
    assert world.there.service.history("web")[0].logical_bytes == 4096
    assert world.here.status("web", "received").way == "far"
    assert [one.direction for one in world.there.service.status("web")] == ["sent"]


def test_a_vm_that_has_another_name_at_the_other_end_is_reversed(world: World) -> None:
    world.here.service.add_peer("east", world.there.key, [f"vm{number}" for number in range(100)])
    world.here.service.protect("web", "far")
    world.wait()
    world.there.vms.rename_vm("web", "shop")
    world.there.service.promote("shop")
    world.there.service.add_path("back", "here.example", key=world.here.key)
    assert world.here.service.reverse("web").path == "back"
    until(lambda: world.there.status("shop").state == "up to date", "it to come back")
    assert world.here.status("web", "received").state == "up to date"
    assert world.here.service.change_peer("east", {"space_bytes": 1 << 40}).vms[-2:] == ["shop", "web"]


def test_a_reverse_that_was_interrupted_is_done_again(world: World) -> None:
    world.here.service.protect("web", "far", rpo_seconds=77)
    world.wait()
    world.there.service.promote("web")
    world.there.service.add_path("back", "here.example", key=world.here.key)
    asked: list[bytes] = []

    def cut_reverse(message: bytes) -> bytes | None:
        asked.append(message)
        return None if b"reverse" in message else message

    world.net.alter = cut_reverse
    with pytest.raises(Exception, match="cut"):
        world.here.service.reverse("web")
    assert world.here.vms.show_vm("web").disks == []
    world.net.alter = lambda message: message
    assert world.here.service.reverse("web").path == "back"
    assert world.here.service.reverse("web").path == "back"
    assert world.there.status("web").rpo_seconds == 77
    until(lambda: world.there.status("web").state == "up to date", "it to come back")


def test_the_receiver_tells_of_a_vm_whose_first_snapshot_is_not_whole_yet(world: World) -> None:
    seen: list[bytes] = []

    def cut(message: bytes) -> bytes | None:
        seen.append(message)
        return message if len(seen) < 3 else None  # HELLO, BEGIN

    world.net.alter = cut
    world.here.service.protect("web", "far")
    [coming] = until(world.there.service.status, "a first part")
    assert (coming.vm, coming.direction, coming.way, coming.newest_uuid) == ("web", "received", "origin", None)
    assert coming.state in ("running", "scheduled") and coming.vm_uuid == world.here.vms.show_vm("web").uuid
    assert world.there.vms.list_vms() == []
    world.net.alter = lambda message: message
    world.wait()
    [here] = world.there.service.status()
    assert here.newest == "s1" and here.state == "up to date"


def test_a_reverse_takes_no_disks_from_a_home_that_the_other_end_does_not_reach(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    world.there.service.promote("web")
    world.there.service.add_path("back", "here.example", key=world.here.key)
    reached = world.net.homes.pop(world.here.key)
    with pytest.raises(Unavailable, match="over its path back: here.example is not reached.*listens for no peers"):
        world.here.service.reverse("web")
    assert len(world.here.vms.show_vm("web").disks) == 2 and world.there.status("web", "received").state == "promoted"
    world.net.homes[world.here.key] = reached
    assert world.here.service.reverse("web").path == "back"


def test_a_seed_that_was_imported_is_adopted(world: World) -> None:
    """A VM of the same uuid, with the same snapshot: what an import of a stream file makes."""
    world.here.service.protect("web", "far")
    world.wait()
    world.there.service.promote("web")
    with world.there.catalog.transaction():
        world.there.catalog.delete_received_vm(world.there.catalog.vm("web").id)  # type: ignore[union-attr]
    world.here.write("web/root", 5, b"new")
    world.here.vms.create_snapshot("web", "s2")
    world.here.service.now("web")
    status = until(lambda: (one := world.here.status("web")).state == "failed" and one, "the refusal")
    assert "replicate receive" in (status.reason or "")
    world.there.service.receive("web", "origin")
    world.here.service.resume("web")
    world.wait()
    assert world.there.read("web/root@s2", 5) == b"new"


def test_a_clone_is_made_at_the_other_end_within_the_names_that_it_allows(world: World) -> None:
    with pytest.raises(NotFound):
        world.here.service.clone_there("web", None, "far", "web-test")
    world.here.service.protect("web", "far")
    world.wait()
    made = world.here.service.clone_there("web", "s1", "far", "web-test")
    assert (made.vm, made.snapshot) == ("web-test", "web@s1")
    assert world.there.read("web-test/root", 0) == b"first"
    with pytest.raises(AlreadyExists):
        world.here.service.clone_there("web", None, "far", "web-test")
    with pytest.raises(NotAllowed):
        world.here.service.clone_there("web", None, "far", "other")


class Watching:
    def __init__(self) -> None:
        self.total = 0
        self.done = 0.0
        self.is_over = False

    def expect(self, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, fraction: float) -> None:
        self.done = fraction

    def is_cancelled(self) -> bool:
        return self.is_over


def test_a_copy_is_a_vm_of_its_own(world: World) -> None:
    made = world.here.service.copy("web", "s1", "far", "web-copy", Watching())
    assert made.vm == "web-copy"
    assert world.there.read("web-copy/root", 0) == b"first"
    assert world.there.vms.show_vm("web-copy").uuid != world.here.vms.show_vm("web").uuid
    assert [one.name for one in world.here.vms.list_snapshots("web")] == ["s1"]
    assert world.there.service.status("web-copy")[0].state == "not configured"


def test_a_copy_ends_when_its_path_is_removed_and_follows_it_to_another_address(world: World) -> None:
    tries: list[bytes] = []

    def cut(message: bytes) -> bytes | None:
        tries.append(message)
        return None if message[0] == Kind.OFFER else message

    world.net.alter = cut
    hosts: list[str] = []
    run = world.here.service._transport.run

    def note_host(path: PathRow, *rest: Any) -> None:
        hosts.append(path.host)
        run(path, *rest)

    world.here.service._transport.run = note_host  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(world.here.service.copy, "web", "s1", "far", "web-copy", Watching())
        until(lambda: hosts, "the first try")
        world.here.service.change_path("far", host="elsewhere.example", port=10810)
        until(lambda: hosts[-1] == "elsewhere.example", "a try at the other address")
        world.here.service.remove_path("far")
        with pytest.raises(NotFound, match="path far was removed"):
            copying.result(120)


def test_vms_of_a_peer_that_is_removed_are_vms_like_others(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    with pytest.raises(Busy):
        world.there.service.remove_peer("origin")
    assert world.there.service.remove_peer("origin", force=True).received == ["web"]
    assert world.there.service.status("web")[0].state == "not configured"
    assert [one.name for one in world.there.vms.list_snapshots("web")] == ["s1"]


def test_a_connection_by_a_key_that_was_replaced_opens_no_channel(world: World) -> None:
    doors = world.net.homes[world.there.key].doors
    logged_in = doors.find_peer(world.here.key)
    assert logged_in is not None
    world.there.service.change_peer("origin", {"key": a_key(9)})
    with pytest.raises(NotAllowed, match="another key"):
        doors.open(logged_in)
    world.there.service.remove_peer("origin")
    with pytest.raises(NotAllowed, match="no peer here"):
        doors.open(logged_in)


def test_a_peer_is_removed_while_it_begins_again_and_again(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    peer = world.there.catalog.peer("origin")
    assert peer is not None
    stopped, ended = threading.Event(), threading.Event()

    def begin() -> None:
        with suppress(NotFound, NotAllowed):
            while not stopped.is_set():
                copy = world.here.vms.sent_snapshot(1, world.here.catalog.snapshots(1)[0].uuid).copy
                world.there.vms.begin_receipt(peer.id, "protect", copy._replace(uuid=str(uuid4())), [])
        ended.set()

    beginning = threading.Thread(target=begin)
    beginning.start()
    try:
        until(lambda: world.there.catalog.receipts(peer.id), "something to have been begun")
        world.there.service.remove_peer("origin", force=True)
        assert ended.wait(120), "a home that is no peer any more begins something"
    finally:
        stopped.set()
        beginning.join()
    assert world.there.catalog.receipts() == [] and world.there.service.list_peers() == []
    assert world.there.vms.reconcile().dropped == []


def test_a_peer_is_told_of_no_vm_that_came_from_another(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        third = Site(stack, tmp_path / "third", world.net, 3)
        third.service.add_path("far", "there.example", key=world.there.key)
        world.there.service.add_peer("third", third.key, ["*"])
        world.here.service.protect("web", "far")
        world.wait()
        path = third.catalog.path_named("far")
        assert path is not None
        uuid = world.here.vms.show_vm("web").uuid
        for what, more in (("vm", {}), ("clone", {"snapshot_uuid": None, "name": "web-x"})):
            with pytest.raises(NotFound):
                third.service._ask(path, what, {"vm_uuid": uuid, **more})


def test_unprotected_vms_are_not_sent_and_their_paths_may_go(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    with pytest.raises(Busy):
        world.here.service.remove_path("far")
    assert [one.path for one in world.here.service.unprotect("web")] == ["far"]
    world.here.vms.create_snapshot("web", "s2")
    assert world.here.service.status("web")[0].state == "not configured"
    world.here.service.remove_path("far")
    assert [one.name for one in world.there.vms.list_snapshots("web")] == ["s1"]


def test_a_peers_globs_are_kept_as_they_were_given(world: World) -> None:
    assert world.there.service.show_peer("origin").vms == ["web*"]
    row = world.there.catalog.peer("origin")
    assert row is not None and json.loads(row.vms) == ["web*"]


def test_a_home_has_no_more_paths_to_another_than_that_serves_at_a_time(world: World) -> None:
    assert PATHS_OF_HOME_MAX < CONNECTIONS_OF_PEER_MAX
    for number in range(1, PATHS_OF_HOME_MAX):
        world.here.service.add_path(f"far-{number}", "there.example", 10811, key=world.there.key)
    with pytest.raises(AlreadyExists, match="paths far, far-1, .* go to that home"):
        world.here.service.add_path("one-more", "there.example", 10812, key=world.there.key)
    world.here.service.remove_path("far-7")
    world.here.service.add_path("one-more", "there.example", 10812, key=world.there.key)


def test_paths_are_tested_shown_and_changed(world: World) -> None:
    test = world.here.service.test_path("far")
    assert (test.peer, test.vms, test.space_bytes, test.path_back, test.version) == ("origin", ["web*"], None, None, 1)
    assert test.software.startswith("blockdev ") and test.rtt_ms == 1.0
    assert world.here.service.change_path("far", level=7).level == 7
    shown = world.here.service.change_path("far", throttle={"rate_bytes": 10_000_000})
    assert shown.throttle["rate_bytes"] == 10_000_000
    for wrong in ({"throttle": {"rate_bytes": -1}}, {"key": "ssh-rsa AAAA"}, {"level": 20}, {"host": "?"}):
        with pytest.raises(InvalidArgument):
            world.here.service.change_path("far", **{"host": "elsewhere.example", "level": 3, **wrong})
    assert world.here.service.show_path("far") == shown  # all or nothing
    [listed] = world.here.service.list_paths()
    assert (listed.host, listed.port, listed.protected_count, listed.error) == ("there.example", 10810, 0, None)
    for given in ({}, {"key": world.there.key, "code": "x"}, {"key": "ssh-rsa AAAA"}):
        with pytest.raises(InvalidArgument):
            world.here.service.add_path("other", "there.example", **given)


def test_the_status_of_a_thousand_vms_is_told_whole(world: World) -> None:
    for number in range(1000):
        with world.here.catalog.transaction():
            vm = world.here.catalog.insert_vm(str(UUID(int=number + 1)), f"vm-{number}", "2026-11-28T12:00:00.000Z")
            path = world.here.catalog.path_named("far")
            assert path is not None
            world.here.catalog.put_protection(vm, path.id, 60, None, 0, "2026-11-28T12:00:00.000Z")
    world.here.service._look(1)
    assert len(world.here.service.status()) == 1000


def test_what_is_left_is_counted_while_a_vm_waits(world: World) -> None:
    world.here.write("web/data", 1, b"x")
    world.here.vms.create_snapshot("web", "s2")
    world.net.is_down = True
    with world.here.catalog.transaction():
        vm, path = world.here.catalog.vm("web"), world.here.catalog.path_named("far")
        assert vm is not None and path is not None
        world.here.catalog.put_protection(vm.id, path.id, None, None, 0, "2026-11-28T12:00:00.000Z")
    world.here.service._look(vm.id)
    status = until(lambda: (one := world.here.status("web")).bytes_remaining and one, "the count")
    assert (status.bytes_remaining, status.snapshots_remaining, status.eta_seconds) == (2 * 4096, 2, None)


def test_a_vm_that_is_late_by_its_rpo_is_told_of_once_and_when_it_has_caught_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LATE_BEATS", 1)
    world.net.is_down = True
    world.here.service.protect("web", "far", rpo_seconds=1)
    status = until(lambda: (one := world.here.status("web")).state == "exceeds rpo" and one, "the RPO")
    assert status.level == "error" and (status.lag_seconds or 0) >= 1
    until(world.here.events, "the event")
    world.net.is_down = False
    until(lambda: len(world.here.events()) > 1, "the other event")
    world.here.vms.create_snapshot("web", "s2")
    world.wait()
    assert [event.split(":")[0] for event in world.here.events()] == ["info web", "error web"]
    assert "within its RPO" in world.here.events()[0]
    received = until(
        lambda: (one := world.there.status("web", "received")).state == "exceeds rpo" and one, "the RPO there"
    )
    assert received.level == "error"
    until(lambda: any("more than its RPO" in event for event in world.there.events()), "the event there")
    world.there.service._pulse.beat(1)  # that event may have been of s1, before s2 came
    told = sum("more than its RPO" in event for event in world.there.events())
    world.there.service.promote("web")
    world.there.service._pulse.beat(1)
    world.there.service.receive("web", "origin")
    with world.there.catalog.transaction():
        vm = world.there.catalog.vm("web")
        peer = world.there.catalog.peer("origin")
        assert vm is not None and peer is not None
        world.there.catalog.put_received_vm(vm.id, peer.id, 1, "2026-11-28T12:00:00.000Z")
    world.there.service._pulse.beat(1)
    assert sum("more than its RPO" in event for event in world.there.events()) == told + 1, "late again is told again"


def test_samples_are_kept_of_what_moved_and_of_who_lags(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    for site, direction in ((world.here, "sent"), (world.there, "received")):
        until(lambda site=site: site.service.history("web"), "the transfer to have ended")  # type: ignore[misc]
        site.service._pulse.beat(pulse.SAMPLE_BEATS)
        site.service._pulse.beat(pulse.SAMPLE_BEATS)
        [sample] = site.service.samples("web", "2020-01-01T00:00:00.000Z")
        assert (sample.direction, sample.logical_bytes) == (direction, 4096) and sample.network_bytes > 0


def test_a_paused_vm_waits_and_is_sent_when_it_is_resumed(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    assert [one.paused for one in world.here.service.pause("web")] == [True]
    world.here.vms.create_snapshot("web", "s2")
    status = until(lambda: (one := world.here.status("web")).snapshots_remaining and one, "the snapshot to wait")
    assert (status.state, status.level) == ("paused", "ok")
    with pytest.raises(Busy, match="resume"):
        world.here.service.now("web")
    world.here.service.resume("web")
    world.wait()
    queued = world.here.service.now("web")
    assert queued.paths == ["far"]
    until(lambda: world.here.status("web").newest == queued.snapshot, "it to be there")


def test_a_snapshot_of_a_frozen_guest_says_so_at_the_other_end(world: World, agent: StandIn) -> None:
    """It is known after the thaw; before, it would have been sent as one that says `crash`."""
    world.here.service.protect("web", "far")
    world.wait()
    world.here.vms.set_agent("web", agent.address)

    def thaw_late(agent: StandIn, request: dict[str, object]) -> bytes:
        dispatcher = world.here.service._dispatcher
        until(lambda: not dispatcher.unseen() and world.here.status("web").snapshots_remaining, "the snapshot to be looked at")
        return well_behaved(agent, request)

    agent.behaviours[THAW] = thaw_late
    taken = take_snapshot(world.here.vms, "web", "s2", terms=Terms(asked="vm"))
    world.wait()
    received = world.there.vms.show_snapshot("web", "s2")
    assert (received.asked, received.consistency, received.frozen_ms) == ("vm", "vm", taken.frozen_ms)


def test_protection_begins_with_the_newest_snapshot_that_is_to_be_sent(world: World) -> None:
    with world.here.catalog.transaction():
        world.here.catalog.set_schedules(None, [{"name": "local", "keep_seconds": 3600, "replicate": False}])
    world.here.vms.create_snapshot("web", "local-1", terms=Terms("schedule", schedule="local"))
    world.here.service.protect("web", "far")
    assert world.wait().newest == "s1"


def test_snapshots_that_replication_takes_have_the_configuration_of_the_moment(world: World) -> None:
    versions = iter(("<web>1</web>", "<web>2</web>"))
    world.here.vms.refresh_config = lambda vm: world.here.vms.set_config(vm, next(versions)) and None
    world.here.vms.delete_snapshot("web", "s1")
    world.here.service.protect("web", "far")
    world.wait()
    world.here.service.now("web")
    world.wait()
    assert [world.there.vms.show_snapshot("web", one.name).config for one in world.there.vms.list_snapshots("web")] == [
        "<web>1</web>",
        "<web>2</web>",
    ]


def test_what_both_ends_built_on_may_be_lost_and_is_told_of(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    world.there.vms.delete_snapshot("web", "s1")
    world.here.write("web/root", 1, b"more")
    world.here.vms.create_snapshot("web", "s2")
    world.wait()
    until(lambda: world.here.status("web").newest == "s2", "it to be there")
    assert world.there.read("web/root@s2", 0) == b"first" and world.there.read("web/root@s2", 1) == b"more"
    assert any("found by fingerprints alone" in event for event in world.here.events())


def test_a_base_that_is_deleted_in_the_middle_does_not_cost_what_has_come_since(world: World) -> None:
    randomness = Random(7)
    world.here.service.protect("web", "far")
    world.wait()
    for place in range(512):
        world.here.pool.find("web/root").write(place * 4096, randomness.randbytes(4096))
    sent: list[int] = []

    def cut_after_two(message: bytes) -> bytes | None:
        if message[0] == Kind.DATA:
            sent.append(len(message))
        return message if len(sent) < 3 else None

    for place in range(256):
        world.here.pool.find("web/data").write(place * 4096, randomness.randbytes(4096))
    world.net.alter = cut_after_two
    world.here.vms.create_snapshot("web", "s2")
    until(lambda: len(sent) >= 3, "the cut")
    world.here.service.pause("web")
    until(lambda: world.here.status("web").snapshot is None, "the end of the attempt")
    world.here.vms.delete_snapshot("web", "s1")
    first = sum(sent[:2])
    sent.clear()

    def count(message: bytes) -> bytes:
        if message[0] == Kind.DATA:
            sent.append(len(message))
        return message

    world.net.alter = count
    world.here.service.resume("web")
    world.wait()
    assert first > 2 << 20 and sum(sent) < (768 - 512 + 10) * 4096, (first, sum(sent))


def test_a_received_vm_cannot_be_protected_before_it_is_promoted(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    world.there.service.add_path("on", "third.example", key=a_key(9))
    with pytest.raises(Busy, match="promote"):
        world.there.service.protect("web", "on")


def test_a_vm_is_not_up_to_date_from_the_moment_that_it_has_a_new_snapshot(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    for number in range(20):
        world.here.vms.create_snapshot("web", f"n{number}")
        status = world.here.status("web")
        assert status.state != "up to date" or status.newest == f"n{number}"


def test_what_was_refused_is_known_after_a_restart_and_tried_at_once(world: World) -> None:
    with world.here.catalog.transaction():
        vm, path = world.here.catalog.vm("web"), world.here.catalog.path_named("far")
        assert vm is not None and path is not None
        world.here.catalog.put_protection(vm.id, path.id, None, None, 0, "2026-11-28T12:00:00.000Z")
        world.here.catalog.note_failed(vm.id, path.id, "pool_full", "no room there")
    world.net.is_down = True
    world.here.service._look(vm.id)
    until(lambda: world.here.service._dispatcher.lanes(), "the lane")
    lane = world.here.service._dispatcher.lane(vm.id, path.id)
    assert lane is not None and str(lane.retry.error) == "no room there" and lane.retry.at == 0
    world.net.is_down = False
    world.wait()
    assert world.here.catalog.protections(vm.id)[0].error_code is None


def test_a_vm_goes_to_one_home_over_one_path(world: World) -> None:
    world.here.service.protect("web", "far")
    world.here.service.add_path("again", "there.example", key=world.there.key)
    with pytest.raises(AlreadyExists, match="path far"):
        world.here.service.protect("web", "again")


def test_a_vm_without_a_snapshot_has_one_taken_when_it_is_protected(world: World) -> None:
    world.here.vms.create_vm("web-2", [("root", MEBIBYTE)])
    world.here.service.protect("web-2", "far")
    world.wait("web-2")
    assert len(world.there.vms.list_snapshots("web-2")) == 1
    world.here.vms.create_vm("web-3", [])
    with pytest.raises(InvalidArgument, match="no disks"):
        world.here.service.protect("web-3", "far")
    assert world.here.service.status("web-3")[0].state == "not configured"


def test_a_path_is_tried_at_once_when_its_other_end_comes_to_us(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "RETRY_SECONDS_MIN", 1000.0)
    world.net.is_down = True
    world.here.service.protect("web", "far")
    until(lambda: world.here.status("web").next_try, "a failure")
    world.net.is_down = False
    world.here.service.add_peer("back", world.there.key)
    world.there.service.add_path("back", "here.example", key=world.here.key)
    world.there.service.test_path("back")
    world.wait()


def test_whatever_happens_meanwhile_no_snapshot_is_skipped_and_each_is_as_at_its_source(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts, a link that goes down, pauses, deletes of snapshots on both ends; then quiet."""
    monkeypatch.setattr(lanes, "RETRY_SECONDS_MAX", 0.2)
    monkeypatch.setattr(lanes, "REFUSED_SECONDS", 0.5)
    seed = randrange(1 << 32)
    print(f"seed {seed}")
    chance = Random(seed)
    names = ["web", "web-1", "web-2", "web-3"]
    for name in names[1:]:
        world.here.vms.create_vm(name, [("root", MEBIBYTE)])
    for name in names:
        world.here.service.protect(name, "far", rpo_seconds=1)
    cuts, cut_count = Random(seed + 1), 0  # drawn by several threads: another run with the seed is alike, not the same

    def cut_some(message: bytes) -> bytes | None:
        nonlocal cut_count
        is_cut = cuts.random() < 0.2
        cut_count += is_cut
        return None if is_cut else message

    world.net.alter = cut_some
    gone: set[str] = set()  # uuids of snapshots that were deleted somewhere
    for number in range(150):
        name = chance.choice(names)
        for _ in range(chance.randrange(20)):
            world.here.write(f"{name}/root", chance.randrange(200), chance.randbytes(64).replace(b".", b","))
        world.here.vms.create_snapshot(name, f"s-{number}")
        roll = chance.random()
        if roll < 0.15:
            site = chance.choice([world.here, world.there])
            _delete_one(site, name, chance, gone)
        elif roll < 0.3:
            chance.choice([world.here.service.pause, world.here.service.resume])(name)
        elif roll < 0.4:
            world.net.is_down = not world.net.is_down
    world.net.is_down = False
    world.net.alter = lambda message: message
    for name in names:
        world.here.service.resume(name)
    for name in names:
        world.wait(name)
        ours = {one.uuid: one for one in world.here.vms.list_snapshots(name)}
        theirs = {one.uuid: one for one in world.there.vms.list_snapshots(name)}
        first = min(one.lsn for one in ours.values() if one.uuid in theirs)
        missing = {one.name for one in ours.values() if one.uuid not in {*theirs, *gone} and one.lsn >= first}
        assert not missing, (name, missing)
        for uuid in ours.keys() & theirs.keys():
            assert _digests(world.here, uuid) == _digests(world.there, uuid), (name, ours[uuid].name)
    assert not world.there.catalog.receipts() and cut_count > 0


def _delete_one(site: Site, name: str, chance: Random, gone: set[str]) -> None:
    try:
        found = site.vms.list_snapshots(name)
    except NotFound:  # nothing of it has come yet
        return
    if found:
        one = chance.choice(found)
        gone.add(one.uuid)
        with suppress(NotFound):
            site.vms.delete_snapshot(name, one.name)


def _digests(site: Site, uuid: str) -> list[bytes]:
    """Made anew: not those that were kept."""
    [row] = site.catalog.snapshots_of_uuid(uuid)
    return [
        site.engine.digest(None, b"", disk.object_id) for disk in site.catalog.snapshot_disks(row.id) if disk.object_id
    ]
