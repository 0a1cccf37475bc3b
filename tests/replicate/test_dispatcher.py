"""What is to be sent is found and sent in order, fairly, again after failures, and not when nobody wants it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockdev.clock import now_seconds
from blockdev.errors import NotAllowed, Unavailable
from blockdev.replicate import dispatcher as dispatcher_module
from blockdev.replicate import lanes as lanes_module
from blockdev.replicate.dispatcher import Dispatcher, Errand
from blockdev.replicate.flow import Count, Flow, Moving
from blockdev.replicate.halt import Halt, Unreached
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.events import Events
from blockdev.vmmap.model import Terms
from tests.cli.served import until

TIME = "2026-11-28T12:00:{:02d}.000Z"


REACHED = "reached"


class Carried:
    """Stands for the other end: each errand waits here until the test says how it ends."""

    def __init__(self) -> None:
        self.begun: queue.Queue[tuple[Errand, Flow, Halt, queue.Queue[Any]]] = queue.Queue()

    def __call__(self, errand: Errand, flow: Flow, halt: Halt, reached: Callable[[], None]) -> None:
        outcome: queue.Queue[Any] = queue.Queue()
        with halt.waking(lambda: outcome.put(None)):
            self.begun.put((errand, flow, halt, outcome))
            said = outcome.get()
            halt.check()
            while said is REACHED:
                reached()
                said = outcome.get()
        if not isinstance(said, Unreached):
            reached()
        if isinstance(said, Exception):
            raise said

    def next(self) -> tuple[str, Callable[[Any], None]]:
        """VM@SNAPSHOT of the next one that begins, and how to end it."""
        errand, flow, _halt, outcome = self.begun.get(timeout=120)
        return f"{flow.vm}@{errand.snapshot.name}", outcome.put

    def end(self, said: Any = None) -> str:
        name, put = self.next()
        put(said)
        return name


class World:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.notes: list[str] = []
        self.carried = Carried()
        self.events = Events(lambda write: write(self), now_seconds)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(catalog, self.carried, now_seconds, self.events, lambda _vm_id: self.is_labelling)
        self.lsn = 0
        self.is_labelling = False

    def add_event(self, time: str, level: str, kind: str, vm: str | None, message: str) -> None:
        assert kind == "replication"
        self.notes.append(f"{level} {vm}: {message}")

    def vm(self, name: str) -> int:
        with self.catalog.transaction():
            return self.catalog.insert_vm(f"00000000-0000-4000-8000-{len(self.catalog.vms()):012d}", name, TIME.format(0))

    def path(self, name: str) -> int:
        with self.catalog.transaction():
            return self.catalog.insert_path(name, "localhost", 10810, f"key of {name}", 3, "{}", TIME.format(0))

    def snapshot(self, vm_id: int, name: str, tells: bool = True, **terms: Any) -> int:
        self.lsn += 1
        with self.catalog.transaction():
            made = self.catalog.insert_snapshot(vm_id, name, TIME.format(self.lsn), self.lsn, terms=Terms(**terms))
        if tells:
            self.dispatcher.look(vm_id)
        return made

    def protect(self, vm_id: int, path_id: int, rpo_seconds: int | None = None, from_lsn: int = 0) -> None:
        with self.catalog.transaction():
            self.catalog.put_protection(vm_id, path_id, rpo_seconds, None, from_lsn, TIME.format(0))
        self.dispatcher.look(vm_id)

    def newest(self, vm_id: int) -> int | None:
        return self.catalog.protections(vm_id)[0].newest_lsn


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(lanes_module, "RETRY_SECONDS_MIN", 0.01)
    catalog = Catalog(tmp_path / "catalog.db")
    made = World(catalog)
    made.dispatcher.start()
    yield made
    made.dispatcher.stop(10)
    catalog.close()


def test_snapshots_of_a_vm_go_one_after_the_other_in_the_order_of_lsns(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    for name in ("b", "a", "c"):
        world.snapshot(vm, name)
    world.protect(vm, path)
    assert [world.carried.end() for _ in range(3)] == ["web@b", "web@a", "web@c"]
    until(lambda: world.newest(vm) == 3, "the last one to be noted")
    assert world.carried.begun.empty()


def test_the_next_one_is_sent_when_it_was_looked_at_what_the_one_before_has_changed(world: World) -> None:
    """Else it would be said that what both ends had is lost, or a snapshot that is there be offered again."""
    web, path = world.vm("web"), world.path("far")
    for name in ("s1", "s2"):
        world.snapshot(web, name, tells=False)
    with world.catalog.transaction():
        world.catalog.put_protection(web, path, None, None, 0, TIME.format(0))
    carried = Carried()
    by_hand = Dispatcher(world.catalog, carried, now_seconds, world.events, lambda _vm_id: False)
    by_hand._look()
    by_hand._begin()
    assert carried.end() == "web@s1"
    until(lambda: by_hand.unseen() and not by_hand._working, "the end of it")
    by_hand._begin()
    assert not by_hand._working
    by_hand._look()
    by_hand._begin()
    errand, _flow, _halt, outcome = carried.begun.get(timeout=120)
    assert (errand.snapshot.name, errand.protection.newest_lsn) == ("s2", 1)
    outcome.put(None)
    by_hand.stop(10)


def test_what_is_older_than_the_protection_and_what_its_schedule_keeps_here_is_not_sent(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    schedules = [{"name": "hourly", "keep_seconds": 60, "replicate": False}, {"name": "daily", "keep_seconds": 60}]
    with world.catalog.transaction():
        world.catalog.set_schedules(None, schedules)
    world.snapshot(vm, "old")
    world.snapshot(vm, "first")
    world.snapshot(vm, "here", schedule="hourly")
    world.snapshot(vm, "there", schedule="daily")
    world.protect(vm, path, from_lsn=2)
    assert [world.carried.end(), world.carried.end()] == ["web@first", "web@there"]


def test_a_new_snapshot_is_sent_at_once(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.protect(vm, path)
    until(lambda: world.dispatcher.lane(vm, path) is not None, "the lane")
    world.snapshot(vm, "s1")
    assert world.carried.end() == "web@s1"


def test_a_snapshot_is_sent_when_it_is_known_how_consistent_it_is(world: World) -> None:
    web = world.vm("web")
    world.protect(web, world.path("far"))
    world.is_labelling = True
    world.snapshot(web, "s1")
    frozen = world.snapshot(web, "s2", asked="vm")
    assert world.carried.end() == "web@s1"
    until(lambda: world.newest(web) == 1 and not world.dispatcher.unseen(), "s1 to be there")
    assert world.carried.begun.empty()
    with world.catalog.transaction():
        world.catalog.set_snapshot_consistency(frozen, "vm", 5)
    world.is_labelling = False
    world.dispatcher.look(web)
    assert world.carried.end() == "web@s2"


def test_eight_vms_go_over_a_path_at_once_those_that_wait_longest_first(world: World) -> None:
    path, other = world.path("far"), world.path("near")
    vms = [world.vm(f"vm-{number}") for number in range(10)]
    for vm in reversed(vms):
        world.snapshot(vm, "s", tells=False)
    with world.catalog.transaction():
        for vm in vms:
            world.catalog.put_protection(vm, path, None, None, 0, TIME.format(0))
        world.catalog.put_protection(vms[0], other, None, None, 0, TIME.format(0))
    world.dispatcher.look()
    begun = [world.carried.next() for _ in range(9)]
    names = [name for name, _end in begun]
    assert sorted(names) == sorted([*(f"vm-{number}@s" for number in range(2, 10)), "vm-0@s"])
    assert world.carried.begun.empty()
    begun[names.index("vm-5@s")][1](None)
    assert world.carried.end() == "vm-1@s"
    for name, end in begun:
        if name != "vm-5@s":
            end(None)
    assert world.carried.end() == "vm-0@s"


def test_a_transfer_that_was_cut_is_tried_again_and_again(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    for _ in range(dispatcher_module.FAILURES_SERIOUS):
        assert world.carried.end(Unavailable("reset by peer")) == "web@s1"
    until(lambda: world.notes, "the event")
    assert world.notes == ["error web: replication over path far fails: reset by peer"]
    assert world.carried.end() == "web@s1"
    until(lambda: len(world.notes) == 2, "the other event")
    assert world.notes[1] == "info web: replication over path far works again"


def test_a_transfer_that_made_progress_is_tried_again_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "RETRY_SECONDS_MIN", 1000.0)
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    errand, flow, _halt, outcome = world.carried.begun.get(timeout=120)
    moving = Moving("s1", errand.snapshot.uuid, 0.0, lambda: Count(4096, 5000), lambda: None)
    flow.begin(moving)
    flow.end(moving)
    outcome.put(Unavailable("reset by peer"))
    assert world.carried.end() == "web@s1"


def test_what_the_other_end_refuses_waits_until_somebody_asks(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    world.carried.end(NotAllowed("web was promoted there"))
    until(lambda: world.notes, "the event")
    lane = world.dispatcher.lane(vm, path)
    assert lane is not None and lane.retry.is_refused and lane.retry.seconds == lanes_module.REFUSED_SECONDS
    assert world.catalog.protections(vm)[0].error_message == "web was promoted there"
    world.dispatcher.look(vm, at_once=True)
    assert world.carried.end() == "web@s1"
    until(lambda: world.newest(vm) == 1, "it to be noted")
    assert world.catalog.protections(vm)[0].error_message is None


def test_one_vm_alone_tries_a_path_whose_other_end_is_not_reached(world: World) -> None:
    path = world.path("far")
    vms = [world.vm(f"vm-{number}") for number in range(3)]
    for vm in vms:
        world.snapshot(vm, "s")
    world.protect(vms[0], path)
    _name, end = world.carried.next()
    end(Unreached("no route"))
    until(lambda: (way := world.dispatcher.way(path)) is not None and way.is_down, "the failure to be noted")
    world.protect(vms[1], path)
    world.protect(vms[2], path)
    name, end = world.carried.next()
    until(lambda: len(world.dispatcher.lanes()) == 3, "all lanes")
    world.dispatcher.reached("another key")
    assert world.carried.begun.empty()
    end(REACHED)
    assert {world.carried.end(), world.carried.end(), name} == {"vm-0@s", "vm-1@s", "vm-2@s"}
    end(None)


def test_a_paused_vm_is_not_sent_and_goes_on_when_it_is_resumed(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    _errand, _flow, halt, _outcome = world.carried.begun.get(timeout=120)
    with world.catalog.transaction():
        world.catalog.pause_protection(vm, path, True)
    world.dispatcher.look(vm)
    until(halt.is_said, "the transfer to be stopped")
    until(lambda: world.dispatcher.lanes()[0].halt is None, "its end")
    assert world.carried.begun.empty() and not world.notes
    with world.catalog.transaction():
        world.catalog.pause_protection(vm, path, False)
    world.dispatcher.look(vm)
    assert world.carried.end() == "web@s1"


def test_a_transfer_of_a_vm_that_is_protected_no_more_is_stopped(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    _errand, _flow, halt, _outcome = world.carried.begun.get(timeout=120)
    with world.catalog.transaction():
        world.catalog.delete_path(path)
    world.dispatcher.look()
    until(halt.is_said, "the transfer to be stopped")
    until(lambda: not world.dispatcher.lanes(), "the lane to be forgotten")


def test_a_snapshot_that_is_deleted_before_it_was_sent_is_passed_over_and_told_of(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    second = world.snapshot(vm, "s2")
    world.snapshot(vm, "s3")
    world.protect(vm, path)
    name, end = world.carried.next()
    lane = world.dispatcher.lane(vm, path)
    assert name == "web@s1" and lane is not None and [one.name for one in lane.pending] == ["s1", "s2", "s3"]
    with world.catalog.transaction():
        world.catalog.delete_snapshot(second)
    world.dispatcher.look(vm)
    end(None)
    assert world.carried.end() == "web@s3"
    assert world.notes == ["warning web: deleted before they were replicated over path far, and passed over: s2"]


def test_a_stop_halts_what_is_under_way_and_begins_nothing(world: World) -> None:
    vm, path = world.vm("web"), world.path("far")
    world.snapshot(vm, "s1")
    world.protect(vm, path)
    world.carried.begun.get(timeout=120)
    world.dispatcher.stop(10)
    assert not [one for one in threading.enumerate() if one.name in ("send web", "replicate")]
    assert world.newest(vm) is None and world.carried.begun.empty()
