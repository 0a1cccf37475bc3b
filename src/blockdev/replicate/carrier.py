"""Sends one snapshot over a path, as often as another base may help, and keeps what came of it in the history.

Threads: any, each transfer its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from blockdev.clock import monotonic_seconds
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError, Unavailable
from blockdev.replicate.control import Begin
from blockdev.replicate.dispatcher import Errand, Reached
from blockdev.replicate.driver import Sending
from blockdev.replicate.flow import Count, Flow, Moving
from blockdev.replicate.frames import Frame, Message
from blockdev.replicate.halt import Halt, Halted
from blockdev.replicate.lanes import Pending, Retry
from blockdev.replicate.ledger import Ledger
from blockdev.replicate.model import Watcher
from blockdev.replicate.queue import as_pending
from blockdev.replicate.sender import Progress, Sender, Source
from blockdev.replicate.source import SnapshotSource
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import PathRow
from blockdev.vmmap.events import Events
from blockdev.vmmap.service import VMs
from blockdev.watching import Cancelled

WATCH_SECONDS = 0.5  # between looks of a job


class Route(Protocol):
    """What runs a sender over a channel of its own to the other end of a path."""

    def run(self, path: PathRow, machine: Sending, halt: Halt) -> None:
        """Until it is done.  Halted; Unreached; Unavailable: it was cut; what the sender raises."""


class Announcing:
    """A sender that says when the other end has answered."""

    def __init__(self, sender: Sender, reached: Reached) -> None:
        self._sender = sender
        self._reached = reached
        self._is_reached = False

    @property
    def is_done(self) -> bool:
        return self._sender.is_done

    def start(self) -> None:
        self._sender.start()

    def next(self) -> Frame | None:
        return self._sender.next()

    def handle(self, message: Message) -> None:
        if not self._is_reached:
            self._is_reached = True
            self._reached()
        self._sender.handle(message)


class Carrier:
    """One home's."""

    def __init__(
        self, vms: VMs, engine: EngineClient, route: Route, events: Events, ledger: Ledger
    ) -> None:
        self._vms = vms
        self._engine = engine
        self._route = route
        self._events = events
        self._ledger = ledger

    def carry(self, errand: Errand, flow: Flow, halt: Halt, reached: Reached) -> None:
        """Until the other end has the snapshot.  As Route.run."""
        row = errand.protection
        source = SnapshotSource(self._vms, self._engine, errand.vm_id, errand.snapshot.uuid)
        begin = source.begin("protect", errand.keep_seconds, row.rpo_seconds)
        base_uuid = self._send(begin, source, errand.path, errand.snapshot, flow, halt, reached)
        if row.newest_uuid is not None and base_uuid not in (row.newest_uuid, errand.snapshot.uuid):
            self._tell_lost_base(errand, flow, base_uuid)

    def copy(
        self, vm: VMRow, snapshot: SnapshotRow, find_path: Callable[[], PathRow], name: str, watcher: Watcher
    ) -> None:
        """A VM `name` of its own at the other end.  Cancelled; what the other end refuses; Unavailable: it was never reached.

        find_path: the path as it is by then, for each attempt; whatever it raises ends the copy.
        """
        flow = Flow("sent", find_path().name, vm.name, vm.uuid)
        halt, retry = Halt(), Retry()
        over, reached = threading.Event(), threading.Event()
        watching = threading.Thread(target=_watch, args=(flow, watcher, halt, over), name=f"copy {vm.name}", daemon=True)
        watching.start()
        try:
            while True:
                before = flow.total()
                try:
                    source = SnapshotSource(self._vms, self._engine, vm.id, snapshot.uuid)
                    begin = source.begin("copy", None, None, name)
                    self._send(begin, source, find_path(), as_pending(snapshot), flow, halt, reached.set)
                    return
                except Unavailable as error:
                    if not reached.is_set():
                        raise
                    retry.cut(0.0, error, flow.total().minus(before).logical > 0)
                    if halt.wait(retry.seconds):
                        raise Halted from None
        except Halted:
            raise Cancelled from None
        finally:
            over.set()
            watching.join()

    def _send(
        self, begin: Begin, source: Source, path: PathRow, snapshot: Pending, flow: Flow, halt: Halt, reached: Reached
    ) -> str | None:
        """The uuid of the base that was used, or of the snapshot itself if it was there already."""
        sender: Sender | None = Sender(begin, source, path.level)
        while True:
            assert sender is not None
            progress = sender.progress
            began = self._ledger.now()
            moving = _moving(snapshot, progress)
            flow.begin(moving)
            error: BlockdevError | None = None
            try:
                self._route.run(path, Announcing(sender, reached), halt)
                return snapshot.uuid if progress.was_present else progress.base_uuid
            except Halted:
                error = Unavailable("it was stopped, and goes on from there")
                raise
            except BlockdevError as failure:
                error = failure
                sender = sender.retry()
                if sender is None:
                    raise
            finally:
                moved = flow.end(moving)
                self._ledger.put(flow, (snapshot.name, snapshot.uuid), began, moved, error)

    def _tell_lost_base(self, errand: Errand, flow: Flow, base_uuid: str | None) -> None:
        how = "an older snapshot that both ends have" if base_uuid is not None else "fingerprints alone"
        message = (
            f"the snapshot before {errand.snapshot.name} is not on both ends of path {flow.way} any more: "
            f"what to send was found by {how}"
        )
        self._events.note("warning", "replication", flow.vm, message)


def _moving(snapshot: Pending, progress: Progress) -> Moving:
    def moved() -> Count:
        return Count(max(progress.logical_bytes - progress.skipped_bytes, 0), progress.network_bytes)

    def remaining() -> int | None:
        return None if progress.total_bytes is None else max(progress.total_bytes - progress.logical_bytes, 0)

    return Moving(snapshot.name, snapshot.uuid, monotonic_seconds(), moved, remaining)


def _watch(flow: Flow, watcher: Watcher, halt: Halt, over: threading.Event) -> None:
    """Tell whoever waits how far it is, and the transfer when nobody does any more."""
    total = 0
    while not over.wait(WATCH_SECONDS):
        if watcher.is_cancelled():
            halt.say()
        moving = flow.moving
        remaining = None if moving is None else moving.remaining()
        if moving is None or remaining is None:
            continue
        done = moving.read().logical
        if total < done + remaining:
            total = done + remaining
            watcher.expect(total)
        watcher.advance(min((total - remaining) / total, 1.0) if total else 1.0)
