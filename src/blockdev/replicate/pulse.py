"""What goes on beside transfers: how fast they are, who is late, how much is left, and a sample of it all each minute.

One thread.  It counts what is left only for what waits for longer than it takes to send, and each pair of snapshots once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from blockdev.clock import monotonic_seconds
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.replicate.dispatcher import Dispatcher, rpo_trouble
from blockdev.replicate.flow import NOTHING, Flow
from blockdev.replicate.lanes import Lane
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_replication import NewestRow, ReceivedRow
from blockdev.vmmap.clock import Clock, seconds_of, to_text
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
LATE_BEATS = 5  # between looks for who is late
SAMPLE_BEATS = 60
SAMPLE_LAG_SECONDS_MIN = 60.0  # what is late by less, and does not move, gives no sample
STALE_BEATS = 3600  # between looks for what nobody goes on with
STALE_SECONDS = 7 * 86400.0
COUNTED_AT_ONCE = 20  # pairs of snapshots in one beat


class Pulse:
    """One home's."""

    def __init__(
        self,
        vms: VMs,
        dispatcher: Dispatcher,
        inbound: Callable[[], list[Flow]],
        catalog: Catalog,
        engine: EngineClient,
        clock: Clock,
        events: Events,
        recorder: Recorder,
    ) -> None:
        self._vms = vms
        self._dispatcher = dispatcher
        self._inbound = inbound
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._events = events
        self._recorder = recorder
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._late_received: set[int] = set()  # ids of VMs, at the look before
        self._waiting: set[tuple[str | None, str]] = set()  # pairs that the beat before found uncounted

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody waits for it."""
        self._stopping.set()

    def _run(self) -> None:
        beat = 0
        while not self._stopping.wait(BEAT_SECONDS):
            beat += 1
            try:
                self.beat(beat)
            except BlockdevError as error:
                logger.debug("pulse: %s", error.message)
            except Exception:
                if self._stopping.is_set():
                    return
                logger.exception("the figures of replication could not be made; it is tried again")

    def beat(self, number: int) -> None:
        """What is due at the beat of this number."""
        lanes, now = self._dispatcher.lanes(), monotonic_seconds()
        flows = [*(lane.flow for lane in lanes), *self._inbound()]
        for flow in flows:
            flow.mark(now)
        if number % LATE_BEATS == 0:
            self._tell_late(lanes)
            self._tell_late_received()
        if number % SAMPLE_BEATS == 0:
            self._sample(lanes)
        if number % STALE_BEATS == SAMPLE_BEATS:  # soon after a start, too
            self._vms.drop_stale_receipts(to_text(self._clock() - STALE_SECONDS))
        self._count_remaining(lanes)

    def _tell_late(self, lanes: list[Lane]) -> None:
        now = self._clock()
        for lane in lanes:
            flow = lane.flow
            if lane.is_over_rpo(now) and not lane.row.paused:
                lag, rpo = int(lane.lag_seconds(now)), lane.row.rpo_seconds
                message = f"its newest snapshots are not at the other end of path {flow.way} for {lag} s, and its RPO is {rpo} s"
                self._events.begin("error", "replication", flow.vm, message, of=rpo_trouble(lane))
            elif not lane.is_over_rpo(now):
                self._events.end("replication", flow.vm, f"within its RPO over path {flow.way} again", of=rpo_trouble(lane))

    def _tell_late_received(self) -> None:
        """Whoever sends may be gone: then nobody else tells."""
        now = self._clock()
        with self._catalog.transaction():
            rows = [row for row in self._catalog.receiving_vms() if row.rpo_seconds is not None]
            newest = self._catalog.newest_received([row.vm_id for row in rows])
            late = {row.vm_id: row.rpo_seconds for row in rows if _is_late(row, newest.get(row.vm_id), now)}
            names = {row.vm_id: self._catalog.vm_name(row.vm_id) for row in rows}
        for vm_id in self._late_received - set(names):  # promoted, or deleted: should it come again, it is told again
            self._events.end("replication", None, of=f"{vm_id} received: late")
        self._late_received = set(late)
        for vm_id, name in names.items():
            if vm_id in late:
                message = f"its newest snapshot here was taken more than its RPO of {late[vm_id]} s ago"
                self._events.begin("error", "replication", name, message, of=f"{vm_id} received: late")
            else:
                self._events.end("replication", name, "what was received is within its RPO again", of=f"{vm_id} received: late")

    def _sample(self, lanes: list[Lane]) -> None:
        now = self._clock()
        time = to_text(now)
        rows: list[tuple[Any, ...]] = []
        for lane in lanes:
            moved, lag = lane.flow.sample(), lane.lag_seconds(now)
            if moved != NOTHING or lag > SAMPLE_LAG_SECONDS_MIN:
                rows.append((time, "sent", lane.flow.way, lane.flow.vm_uuid, *moved, lane.bytes_remaining(), int(lag)))
        for flow in self._inbound():
            moved = flow.sample()
            if moved != NOTHING:
                rows.append((time, "received", flow.way, flow.vm_uuid, *moved, None, None))
        if rows:
            self._recorder.put(lambda catalog: catalog.add_samples(rows))

    def _count_remaining(self, lanes: list[Lane]) -> None:
        """Of pairs that were uncounted a beat ago already."""
        uncounted = [(lane, pair) for lane in lanes for pair in _uncounted(lane)]
        due = [(lane, pair) for lane, pair in uncounted if pair in self._waiting]
        self._waiting = {pair for _lane, pair in uncounted}
        for lane, (older, newer) in due[:COUNTED_AT_ONCE]:
            if self._stopping.is_set():
                return
            size = self._changed_bytes(lane.row.vm_id, older, newer)
            if size is not None:
                lane.sizes[older, newer] = size

    def _changed_bytes(self, vm_id: int, older: str | None, newer: str) -> int | None:
        """None: one of them went meanwhile."""
        with self._catalog.transaction():
            disks = [self._disks(vm_id, uuid) for uuid in (older, newer)]
        before, after = disks
        if after is None:
            return None
        try:
            return sum(self._engine.count_changes((before or {}).get(name), id)[0] for name, id in after.items())
        except BlockdevError:  # deleted meanwhile, or the engine is away: the next beat tries again
            return None

    def _disks(self, vm_id: int, uuid: str | None) -> dict[str, int] | None:
        """Name -> object id of a snapshot's disks; None: there is no such snapshot."""
        row = None if uuid is None else self._catalog.snapshot_of_uuid(vm_id, uuid)
        if row is None:
            return None
        return {one.name: one.object_id for one in self._catalog.snapshot_disks(row.id) if one.object_id is not None}


def _is_late(row: ReceivedRow, newest: NewestRow | None, now: float) -> bool:
    return newest is not None and row.rpo_seconds is not None and now - seconds_of(newest.created) > row.rpo_seconds


def _uncounted(lane: Lane) -> list[tuple[str | None, str]]:
    older, pairs, pending = lane.row.newest_uuid, [], lane.pending  # which is replaced, never changed
    for one in pending:
        if (older, one.uuid) not in lane.sizes:
            pairs.append((older, one.uuid))
        older = one.uuid
    wanted = {one.uuid for one in pending}
    for pair in [pair for pair in lane.sizes if pair[1] not in wanted]:
        lane.sizes.pop(pair, None)
    return pairs

