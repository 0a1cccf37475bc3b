"""Finds what is to be sent, and has it sent: one thread that looks, and one for each transfer under way.

It looks at a VM when it is told to (a snapshot was taken, a protection changed), at all each LOOK_SECONDS_MAX, and at what
waits for its time when that has come.  Locks: `_changed` guards lanes and ways; nothing blocks under it.
Durable: that the other end has a snapshot, when its transfer has ended; everything else is found again after a restart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, NotFound, Unavailable, from_code
from blockdev.priority import give_way_to_guests
from blockdev.replicate.flow import Count, Flow
from blockdev.replicate.halt import Halt, Halted, Rejected, Unreached
from blockdev.replicate.lanes import Lane, Pending, Retry, Way, choose, next_time
from blockdev.replicate.queue import as_pending
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_replication import PathRow, ProtectionRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events, enumerate_some
from blockdev.vmmap.holds import Rules, snapshots_not_there
from blockdev.vmmap.names import is_unfinished

logger = logging.getLogger(__name__)

LOOK_SECONDS_MAX = 20.0  # between two looks at everything
FAILURES_SERIOUS = 6  # attempts in a row: after about a minute
AGAIN_SECONDS = 1.0  # after a look that failed

Key = tuple[int, int]  # VM id, path id


class Errand(NamedTuple):
    """A snapshot that is to go over a path."""

    protection: ProtectionRow
    path: PathRow
    vm_id: int
    snapshot: Pending
    keep_seconds: int | None  # at the other end


Reached = Callable[[], None]  # called when the other end has answered
Carry = Callable[[Errand, Flow, Halt, Reached], None]


class Dispatcher:
    """Lanes and ways of one home."""

    def __init__(
        self, catalog: Catalog, carry: Carry, clock: Clock, events: Events, is_labelling: Callable[[int], bool]
    ) -> None:
        """carry: sends a snapshot until the other end has it.  Halted; Unreached; what else keeps it from that.

        is_labelling: VMs.is_labelling.
        """
        self._catalog = catalog
        self._carry = carry
        self._clock = clock
        self._events = events
        self._is_labelling = is_labelling
        self._changed = threading.Condition()
        self._lanes: dict[Key, Lane] = {}
        self._ways: dict[int, Way] = {}
        self._dirty: set[int] = set()  # ids of VMs to look at,
        self._looked_at: set[int] = set()  # and of those that are just being looked at
        self._looks_at_all = True
        self._next_look = 0.0  # at everything
        self._woken = False
        self._stopping = False
        self._looking: threading.Thread | None = None
        self._working: set[threading.Thread] = set()

    def start(self) -> None:
        self._looking = threading.Thread(target=self._run, name="replicate", daemon=True)
        self._looking.start()

    def halt(self) -> None:
        """Begin nothing more, and halt what is under way."""
        with self._changed:
            self._stopping = True
            halts = [lane.halt for lane in self._lanes.values() if lane.halt is not None]
            self._changed.notify_all()
        for halt in halts:
            halt.say()

    def stop(self, seconds: float) -> None:
        """As `halt`, and wait so long for it."""
        deadline = monotonic_seconds() + seconds
        self.halt()
        with self._changed:
            threads = [*self._working, *([self._looking] if self._looking else [])]
        for thread in threads:
            thread.join(max(deadline - monotonic_seconds(), 0.0))

    def look(self, vm_id: int | None = None, at_once: bool = False) -> None:
        """Something changed of this VM, or of any.  at_once: attempt it, whatever failed before."""
        with self._changed:
            if vm_id is None:
                self._looks_at_all = True
            else:
                self._dirty.add(vm_id)
            for lane in self._lanes.values() if at_once else ():
                if vm_id in (None, lane.row.vm_id):
                    lane.retry.reset()
                    if lane.row.path_id in self._ways:
                        self._ways[lane.row.path_id].retry.hurry()
            self._changed.notify_all()

    def reached(self, key: str) -> None:
        """The home of this public key has come to us: it may be reached, too."""
        with self._changed:
            for way in self._ways.values():
                if way.row.key == key:
                    way.retry.hurry()
            self._woken = True
            self._changed.notify_all()

    def unseen(self) -> set[int]:
        """Ids of VMs that changed, and were not looked at since."""
        with self._changed:
            return self._dirty | self._looked_at

    def lanes(self) -> list[Lane]:
        with self._changed:
            return list(self._lanes.values())

    def lane(self, vm_id: int, path_id: int) -> Lane | None:
        with self._changed:
            return self._lanes.get((vm_id, path_id))

    def way(self, path_id: int) -> Way | None:
        with self._changed:
            return self._ways.get(path_id)

    # looking

    def _run(self) -> None:
        while self._wait():
            try:
                self._look()
                self._begin()
            except BlockdevError as error:
                logger.warning("what is to be replicated could not be found: %s", error.message)
                self._look_again()
            except Exception:
                if self._stopping:
                    return
                logger.exception("what is to be replicated could not be found; it is tried again")
                self._look_again()

    def _look_again(self) -> None:
        with self._changed:
            self._looks_at_all = True
            self._changed.wait_for(lambda: self._stopping, AGAIN_SECONDS)

    def _wait(self) -> bool:
        """Until there may be something to do; False: we stop."""
        with self._changed:
            now = monotonic_seconds()
            times = (self._next_look, next_time(self._lanes.values(), self._ways, now))
            seconds = min(time for time in times if time is not None) - now
            self._changed.wait_for(
                lambda: self._stopping or self._dirty or self._looks_at_all or self._woken, max(seconds, 0.0)
            )
            self._woken = False
            if monotonic_seconds() >= self._next_look:
                self._looks_at_all = True
            return not self._stopping

    def _look(self) -> None:
        with self._changed:
            at_all, self._looks_at_all = self._looks_at_all, False
            dirty, self._dirty = self._dirty, set()
            self._looked_at = dirty
            if at_all:
                self._next_look = monotonic_seconds() + LOOK_SECONDS_MAX
        with self._catalog.transaction():
            rules = Rules(self._catalog)
            paths = {row.id: row for row in self._catalog.paths()}
            if at_all:
                rows = self._catalog.protections()
            else:
                rows = [row for vm_id in dirty for row in self._catalog.protections(vm_id)]
        with self._changed:
            gone = [way for id, way in self._ways.items() if id not in paths]
            for way in gone:
                del self._ways[way.row.id]
            for id, path in paths.items():
                self._ways.setdefault(id, Way(path)).row = path
        for way in gone:
            self._events.end("replication", None, of=f"path {way.row.name}")
        self._forget(rows, None if at_all else dirty)
        for row in rows:
            self._look_at(row, paths, rules)
        with self._changed:
            self._looked_at = set()

    def _forget(self, rows: Iterable[ProtectionRow], vm_ids: set[int] | None) -> None:
        """Lanes whose protections are no more."""
        known = {(row.vm_id, row.path_id) for row in rows}
        with self._changed:
            gone = [
                lane for key, lane in self._lanes.items() if key not in known and (vm_ids is None or lane.row.vm_id in vm_ids)
            ]
            for lane in gone:
                del self._lanes[lane.key]
            halts = [lane.halt for lane in gone if lane.halt is not None]
        for halt in halts:
            halt.say()
        for lane in gone:
            self._events.end("replication", lane.flow.vm, of=trouble(lane))
            self._events.end("replication", lane.flow.vm, of=rpo_trouble(lane))

    def _look_at(self, row: ProtectionRow, paths: dict[int, PathRow], rules: Rules) -> None:
        with self._catalog.transaction():
            vm = self._catalog.vm_by_id(row.vm_id)
            found = [one for one in self._catalog.protections(row.vm_id) if one.path_id == row.path_id]
            if vm is None or not found or row.path_id not in paths:
                return
            row = found[0]
            is_held = is_unfinished(vm.description) or self._catalog.receiving_vm(vm.id) is not None
            lacking = snapshots_not_there(self._catalog, row, vm)
            pending = [as_pending(one) for one in lacking if rules.is_sent(vm, one)]
            damaged = [one.name for one in lacking if rules.lacks_disk(one)]
        is_labelling = self._is_labelling(vm.id)  # after the look at what its snapshots say
        path = paths[row.path_id]
        with self._changed:
            lane = self._lanes.get((row.vm_id, row.path_id))
            if lane is None:
                lane = self._lanes[row.vm_id, row.path_id] = Lane(
                    row, Flow("sent", path.name, vm.name, vm.uuid), retry=_retry_of(row)
                )
            before = lane.pending
            lane.row, lane.pending, lane.is_held, lane.is_labelling = row, pending, is_held, is_labelling
            lane.flow.vm, lane.flow.way = vm.name, path.name
            halt = lane.halt if row.paused or is_held else None
        if halt is not None:
            halt.say()
        self._tell_passed_over(lane, before, {one.id for one in pending})
        self._tell_damaged(lane, damaged)

    def _tell_passed_over(self, lane: Lane, before: list[Pending], now: set[int]) -> None:
        newest = lane.row.newest_lsn
        gone = [
            one.name
            for one in before
            if one.id not in now
            and (newest is None or one.lsn > newest)
            and self._catalog.snapshot_by_id(one.id) is None
        ]
        if gone:
            what = f"deleted before they were replicated over path {lane.flow.way}, and passed over: {enumerate_some(gone)}"
            self._events.note("warning", "replication", lane.flow.vm, what)

    def _tell_damaged(self, lane: Lane, names: list[str]) -> None:
        of = f"{trouble(lane)}: damaged"
        if names:
            message = f"the pool lacks a disk of what was to be replicated over path {lane.flow.way}, which is passed over: {enumerate_some(names)}"
            self._events.begin("error", "replication", lane.flow.vm, message, of=of)
        else:
            self._events.end("replication", lane.flow.vm, of=of)

    # sending

    def _begin(self) -> None:
        with self._changed:
            if self._stopping:
                return
            for lane in choose(self._lanes.values(), self._ways, monotonic_seconds(), self._dirty):
                lane.halt = Halt()
                way, first = self._ways[lane.row.path_id], lane.pending[0]
                thread = threading.Thread(
                    target=self._work, args=(lane, way, first, lane.halt), name=f"send {lane.flow.vm}", daemon=True
                )
                self._working.add(thread)
                thread.start()

    def _work(self, lane: Lane, way: Way, first: Pending, halt: Halt) -> None:
        give_way_to_guests()
        before = lane.flow.total()
        try:
            self._carry(self._errand(lane, way, first), lane.flow, halt, lambda: self._note_reached(way))
            self._note_sent(lane, way, first)
        except Halted:
            pass
        except BlockdevError as error:
            self._note_failed(lane, way, first, error, lane.flow.total().minus(before), halt)
        except Exception as error:  # a bug: its trace belongs in the log
            if not halt.is_said():
                logger.exception("a transfer of VM %s failed", lane.flow.vm)
                failure = BlockdevError(f"internal error: {type(error).__name__}: {error}; see the log of blockdevd")
                self._note_failed(lane, way, first, failure, lane.flow.total().minus(before), halt)
        finally:
            with self._changed:
                lane.halt = None
                self._working.discard(threading.current_thread())
                self._dirty.add(lane.row.vm_id)
                self._changed.notify_all()

    def _errand(self, lane: Lane, way: Way, first: Pending) -> Errand:
        """NotFound: it was deleted."""
        with self._catalog.transaction():
            vm, snapshot = self._catalog.vm_by_id(lane.row.vm_id), self._catalog.snapshot_by_id(first.id)
            if vm is None or snapshot is None:
                raise NotFound(f"snapshot {lane.flow.vm}@{first.name} was deleted")
            keep_seconds = Rules(self._catalog).keep_seconds(vm, snapshot, lane.row)
        return Errand(lane.row, way.row, lane.row.vm_id, first, keep_seconds)

    def _note_reached(self, way: Way) -> None:
        """All lanes of the way may go."""
        with self._changed:
            has_failed = way.is_down or way.retry.error is not None
            way.is_down = False
            way.retry.reset()
            self._woken |= has_failed
            self._changed.notify_all()
        if has_failed:
            self._tell_reached(way)

    def _note_sent(self, lane: Lane, way: Way, sent: Pending) -> None:
        now = self._clock()
        with self._catalog.transaction():
            self._catalog.note_replicated(*lane.key, sent.uuid, sent.lsn, to_text(sent.created), to_text(now))
        with self._changed:
            lane.retry.reset()
            lane.pending = [one for one in lane.pending if one.id != sent.id]
        self._events.end("replication", lane.flow.vm, f"replication over path {lane.flow.way} works again", of=trouble(lane))

    def _tell_reached(self, way: Way) -> None:
        self._events.end("replication", None, f"the other end of path {way.row.name} is reached again", of=f"path {way.row.name}")

    def _note_failed(
        self, lane: Lane, way: Way, first: Pending, error: BlockdevError, moved: Count, halt: Halt
    ) -> None:
        if halt.is_said() or self._catalog.snapshot_by_id(first.id) is None:
            return  # nobody wants it any more: the next look tells
        now = monotonic_seconds()
        is_of_path = isinstance(error, Unreached | Rejected)
        with self._changed:
            way.is_down |= is_of_path
            retry = way.retry if is_of_path else lane.retry
            if isinstance(error, Unavailable | NotFound):  # what it was sent to is gone there: it is begun anew
                retry.cut(now, error, moved.logical > 0)
            else:
                retry.refuse(now, error)
            is_serious = retry.is_refused or retry.failures >= FAILURES_SERIOUS
        logger.info("sending %s@%s over path %s: %s", lane.flow.vm, first.name, way.row.name, error.message)
        if retry.is_refused and not is_of_path:
            with self._catalog.transaction():
                self._catalog.note_failed(*lane.key, error.code, error.message)
        if is_serious and is_of_path:
            message = f"the other end of path {way.row.name} is not reached: {error.message}"
            self._events.begin("error", "replication", None, message, of=f"path {way.row.name}")
        elif is_serious:
            message = f"replication over path {way.row.name} fails: {error.message}"
            self._events.begin("error", "replication", lane.flow.vm, message, of=trouble(lane))


def _retry_of(row: ProtectionRow) -> Retry:
    """At once, and knowing what the process before met."""
    if row.error_code is None:
        return Retry()
    return Retry(failures=row.failures, is_refused=True, error=from_code(row.error_code, row.error_message or ""))


def trouble(lane: Lane) -> str:
    """What events call a lane that fails."""
    return f"{lane.flow.vm_uuid} over {lane.flow.way}"


def rpo_trouble(lane: Lane) -> str:
    """What events call a lane that is late."""
    return f"{lane.flow.vm_uuid} over {lane.flow.way}: late"
