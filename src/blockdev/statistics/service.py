"""The statistics of one home: looks at the engine, adds up, and answers.

Every LOOK_SECONDS, and when somebody wants to know now, one look: what the engine counted since the one before goes into the totals
(totals.py), which are written down, then into history (history.py); then it is published.  Whoever asks meanwhile has the look
before.  While the engine is away there is nothing to count, and history has a gap.

Threads: one looks, one measures space; the methods may be called from any.  Locks: `_looking` before `_lock`, which is the history's
and guards all that a look changes; nobody waits for the engine under it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blockdev.clock import monotonic_seconds
from blockdev.engine.client import EngineClient
from blockdev.engine.statistics import LATENCY_BUCKETS, EngineStatistics
from blockdev.errors import BlockdevError
from blockdev.statistics.counters import COUNT, LATENCY_KINDS, counters, sums
from blockdev.statistics.figures import GAUGE_OF, GAUGES, OF, QUANTILES, SUMS, Floats, Span, unknown
from blockdev.statistics.history import Graph, History
from blockdev.statistics.latency import Latency
from blockdev.statistics.looks import DiskLook, Known, Latest, Machines, Replicating, Sources, Space
from blockdev.statistics.ring_files import POOL
from blockdev.statistics.slots import Seen, p99_ns
from blockdev.statistics.totals import NOTHING, DiskKey, FlowKey, Totals, Whole

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
FRESH_SECONDS = 1.0  # what is not older is as of now
SOON_SECONDS_MAX = 0.5  # that somebody waits for a look; then the one before must do
BEHIND_SECONDS = 0.02  # after the end of a slot, so that what is counted is almost all of it
GAP_SECONDS = 30.0  # what happened between looks that far apart is in no graph: nobody knows when it did
SPACE_SECONDS_MAX = 300.0  # between measurements of space while nothing is written,
SPACE_CHANGED_SECONDS = 10.0  # while something is, or VMs came or went,
SPACE_DUTY = 100  # and always at least so many times what one takes
SPACE_FIRST_SECONDS = 5.0
STOP_SECONDS_MAX = 2.0
DIRECTORY = "statistics"


class _ByLatency(NamedTuple):
    """What a look found in the engine's histograms."""

    owners: Whole  # (disks,): the rows of their VMs
    counted: Whole  # (disks, counters.COUNT)
    p99_ns: Floats  # (disks, QUANTILES): since the look before
    histograms: Whole  # (VMs, QUANTILES, buckets): likewise


class Statistics:
    """Of one home."""

    def __init__(self, home: Path, engine: EngineClient, sources: Sources, clock: Callable[[], float]) -> None:
        """Nothing is read or made yet."""
        self._directory = home / DIRECTORY
        self._engine = engine
        self._sources = sources
        self._clock = clock
        self._looking = threading.Lock()
        self._history = History(self._directory)
        self._lock = self._history.lock
        self._totals: Totals | None = None
        self._machines = Machines({}, {}, {})
        self._space: dict[str, Space] = {}
        self._has_changed = False  # what space is measured of; set by looks, cleared by the thread that measures
        self._replicating: Mapping[FlowKey, Replicating] = {}
        self._latency = Latency()
        self._disks: dict[int, DiskLook] = {}
        self._last_look: float | None = None  # of a clock that never jumps
        self._last_answer: float | None = None  # the last look that the engine answered
        self._latest = Latest(0.0, 0.0, False, [POOL], {}, unknown(1), np.zeros(1, np.int64), np.zeros(1))
        self._wake = threading.Event()
        self._looked = threading.Condition()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="statistics", daemon=True),
            threading.Thread(target=self._run_space, name="space", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """An engine that hangs is not waited for."""
        self._stopping.set()
        self._wake.set()
        if self._threads[0].is_alive():
            self._threads[0].join(STOP_SECONDS_MAX)
        with self._lock:
            if self._totals is not None:
                self._history.stop()
                self._totals.close()
                self._totals = None

    # what is known

    def latest(self) -> Latest:
        """The last look."""
        return self._latest

    def refresh(self) -> None:
        """Have a look that is not older than a second, unless the engine takes long to answer."""
        before = self._last_look
        if before is not None and monotonic_seconds() - before < FRESH_SECONDS:
            return
        with self._looked:
            self._wake.set()
            self._looked.wait_for(lambda: self._last_look != before or self._stopping.is_set(), SOON_SECONDS_MAX)

    def disks(self, vm: str) -> list[tuple[str, DiskLook, Whole]]:
        """Those of the VM of this UUID, by name, as the last look found them; with their requests by latency (Latency.of)."""
        with self._lock:
            known = self._machines.disks
            ids = [id for id in self._disks if id in known and known[id].vm == vm]
            found = [(known[id].name, self._disks[id], self._latency.of(id)) for id in ids]
        return sorted(found, key=lambda one: one[0])

    def total(self, vm: str) -> Whole:
        """What the VM of this UUID counted, disks that it has no more among them: counters.COUNT numbers."""
        return self.known().vm_totals.get(vm, NOTHING)

    def known(self) -> Known:
        """Everything, as the last look left it."""
        with self._lock:
            machines, totals = self._machines, self._totals
            of_disks = {id: NOTHING if totals is None else totals.total(id) for id in machines.disks}
            gone: dict[str, Whole] = {}
            if totals is not None:
                removed = [(key.vm, totals.total(id)) for id, key in totals.disks.items() if id not in machines.disks]
                for vm, total in [*((vm, totals.gone(vm)) for vm in machines.names), *removed]:
                    if vm in machines.names and total.any():
                        gone[vm] = gone.get(vm, NOTHING) + total
            whole = {vm: gone.get(vm, NOTHING) for vm in machines.names}
            for id, key in machines.disks.items():
                whole[key.vm] = whole[key.vm] + of_disks[id]
            moved = {} if totals is None else {key: one for key, one in totals.moved().items() if key.vm in machines.names}
            replicating = {key: one for key, one in self._replicating.items() if key.vm in machines.names}
            in_flight = {id: look.in_flight for id, look in self._disks.items()}
            return Known(
                *(self._latest, machines.names, machines.disks, machines.sizes, of_disks),
                *(in_flight, gone, whole, moved, replicating),
            )

    def graph(self, vm: str | None, since: int, until: int, points: int) -> Graph:
        """Of the VM of this UUID, None: of all; since and until at most 0 are relative to now.  InvalidArgument."""
        now = self._clock()
        begin, end = (int(now) + moment if moment <= 0 else moment for moment in (since, until))
        return self._history.graph(vm or POOL, begin, end, points, now)

    # looking

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except BlockdevError as error:
                logger.debug("statistics: %s", error.message)
            except Exception:
                if not self._stopping.is_set():
                    logger.exception("statistics could not be taken; it is tried again")
            self._wake.wait(self._wait_seconds())
            self._wake.clear()

    def _wait_seconds(self) -> float:
        return LOOK_SECONDS - self._clock() % LOOK_SECONDS + BEHIND_SECONDS

    def look(self) -> None:
        """Once.  As the sources raise; an engine that does not answer is told in what is known."""
        with self._looking:
            machines, replicating = self._sources.machines(), self._sources.replication()
            try:
                answer: EngineStatistics | None = self._engine.statistics()
            except BlockdevError as error:
                logger.debug("the engine's counters are not known: %s", error.message)
                answer = None
            with self._lock:
                if self._stopping.is_set():  # it may have taken long, and nobody waited
                    return
                self._begin(machines)
                self._meet(machines)
                self._replicating = replicating
                self._take(answer)
        with self._looked:
            self._looked.notify_all()

    def _begin(self, machines: Machines) -> None:
        """At the first look: what the process before knew."""
        if self._totals is not None:
            return
        self._history.files.make_directory()
        self._totals = Totals(self._directory / "totals.db")
        self._history.arrange([POOL, *machines.names])
        self._history.delete_others()
        self._history.check_files()
        if self._totals.looked:
            self._history.resume(self._totals.looked)

    def _meet(self, machines: Machines) -> None:
        """VMs that came, went, or are called otherwise."""
        assert self._totals is not None
        vms = [POOL, *machines.names]
        if vms != self._history.vms:
            gone = set(self._history.vms) - set(vms)
            self._history.arrange(vms)
            for vm in gone:
                self._history.files.delete(vm)
            self._has_changed = True
        gone = self._totals.vms() - set(vms)
        if gone:
            self._totals.forget_vms(gone)
        self._machines = machines

    def _take(self, answer: EngineStatistics | None) -> None:
        assert self._totals is not None
        now, monotonic = self._clock(), monotonic_seconds()
        seconds = self._seconds_since_the_last(now, monotonic, answer)
        self._last_look = monotonic
        if answer is None:
            self._publish(now, 0.0, None, [])
            return
        self._last_answer = monotonic
        rows, keys = self._rows(answer)
        ids = [int(id) for id in answer.rows["id"][rows]]
        flows = {key: one.moved for key, one in self._replicating.items()}
        restarted = answer.instance.hex() != self._totals.instance
        by_latency = self._by_latency(answer, rows, ids, [keys[id].vm for id in ids], restarted)
        moved, run = self._totals.take(answer.instance.hex(), now, ids, by_latency.counted, keys, flows)
        self._latency.keep(answer, rows, ids)
        of_disks = sums(moved)
        self._has_changed |= bool(of_disks[:, OF["written_bytes"]].any())
        seen = self._of_vms(of_disks, by_latency, run)
        if 0 < seconds <= GAP_SECONDS:
            self._history.add(now - seconds, now, seen)
        else:
            seconds = 0.0
        self._note_disks(answer, rows, ids, of_disks, by_latency.p99_ns, seconds)
        self._publish(now, seconds, seen, ids)

    def _seconds_since_the_last(self, now: float, monotonic: float, answer: EngineStatistics | None) -> float:
        """How long it took for what has been counted since the last answer; by another engine: since the last look, which met none."""
        assert self._totals is not None
        if answer is not None and answer.instance.hex() == self._totals.instance:  # it was away for us alone, and went on counting
            return now - self._totals.looked if self._last_answer is None else monotonic - self._last_answer
        return 0.0 if self._last_look is None else monotonic - self._last_look

    def _rows(self, answer: EngineStatistics) -> tuple[list[int], dict[int, DiskKey]]:
        """The engine's rows of disks that VMs have, or had while their snapshots are read; whose they are."""
        assert self._totals is not None
        keys: dict[int, DiskKey] = {}
        rows = []
        for row, id in enumerate(answer.rows["id"].tolist()):
            key = self._machines.disks.get(id)
            if key is None and id in self._totals.disks and self._totals.disks[id].vm in self._machines.names:
                key = self._totals.disks[id]
            if key is not None:
                keys[id] = key
                rows.append(row)
        return rows, keys

    def _by_latency(self, answer: EngineStatistics, rows: list[int], ids: list[int], owners: list[str], restarted: bool) -> _ByLatency:
        """The disks of a look, which are these rows, a part of them at a time."""
        row_of = {vm: row for row, vm in enumerate(self._history.vms)}
        found = _ByLatency(
            np.array([row_of[vm] for vm in owners], np.int64),
            np.zeros((len(ids), COUNT), np.int64),
            np.full((len(ids), len(QUANTILES)), np.nan),
            np.zeros((len(row_of), len(QUANTILES), LATENCY_BUCKETS), np.int64),
        )
        for part in self._latency.since(answer, rows, ids, restarted):
            found.counted[part.places] = counters(answer.rows[rows[part.places]], part.counted[:, :LATENCY_KINDS])
            found.p99_ns[part.places] = p99_ns(part.moved)
            np.add.at(found.histograms, found.owners[part.places], part.moved)
        found.histograms[0] = found.histograms[1:].sum(axis=0)
        return found

    def _of_vms(self, disks: Whole, by_latency: _ByLatency, run: Mapping[FlowKey, tuple[int, int]]) -> Seen:
        """What is known of disks (their sums), replication and space, added up by VM, and of all together."""
        vms = self._history.vms
        row_of = {vm: row for row, vm in enumerate(vms)}
        seen = Seen(
            np.zeros((len(vms), len(SUMS)), np.int64),
            by_latency.histograms,
            np.full((len(vms), len(GAUGES)), np.nan),
            np.zeros(len(vms), np.bool_),
        )
        np.add.at(seen.sums, by_latency.owners, disks)
        for key, one in self._replicating.items():
            if key.vm in row_of:
                row, (logical, network) = row_of[key.vm], run.get(key, (0, 0))
                seen.sums[row, OF["logical_bytes"]] += logical
                seen.sums[row, OF["network_bytes"]] += network
                _note_replicating(seen, row, one)
                _note_replicating(seen, 0, one)
        for vm, space in self._space.items():
            if vm in row_of:
                for name in Space._fields:
                    seen.gauges[row_of[vm], GAUGE_OF[name]] = getattr(space, name)
        seen.sums[0] = seen.sums[1:].sum(axis=0)
        return seen

    def _note_disks(self, answer: EngineStatistics, rows: list[int], ids: list[int], disks: Whole, p99: Floats, seconds: float) -> None:
        assert self._totals is not None
        spans = disks.astype(np.float64)
        found = {}
        for place, (row, id) in enumerate(zip(rows, ids, strict=True)):
            one = slice(place, place + 1)
            span = Span(np.full(1, seconds), spans[one], p99[one], np.full((1, len(GAUGES)), np.nan))
            sizes = answer.rows["kinds"]["sizes"][row].astype(np.int64)
            found[id] = DiskLook(id, int(answer.rows["in_flight"][row]), span, self._totals.total(id), sizes)
        self._disks = found

    def _publish(self, now: float, seconds: float, seen: Seen | None, ids: list[int]) -> None:
        vms = self._history.vms
        in_flight = np.zeros(len(vms), np.int64)
        if seen is None:
            self._disks = {}
            span = unknown(len(vms))
        else:
            totals = seen.sums.astype(np.float64)
            totals[~seen.replicates, OF["logical_bytes"] :] = np.nan
            span = Span(np.full(len(vms), seconds), totals, p99_ns(seen.histograms), seen.gauges)
            row_of = {vm: row for row, vm in enumerate(vms)}
            for id in ids:
                key = self._machines.disks.get(id)
                if key is not None:
                    in_flight[row_of[key.vm]] += self._disks[id].in_flight
            in_flight[0] = in_flight[1:].sum()
        changed = self._history.changed_in_a_day()
        self._latest = Latest(now, seconds, seen is not None, list(vms), self._machines.names, span, in_flight, changed)

    # space

    def _run_space(self) -> None:
        wait, due = SPACE_FIRST_SECONDS, 0.0
        while not self._stopping.wait(wait):
            began = monotonic_seconds()
            wait = SPACE_CHANGED_SECONDS
            if began < due and not self._has_changed:
                continue
            self._has_changed = False  # before it is read: what comes meanwhile counts for the next
            try:
                self._space = self._sources.space()
            except BlockdevError as error:
                logger.debug("space could not be measured: %s", error.message)
            except Exception:
                if not self._stopping.is_set():
                    logger.exception("space could not be measured; it is tried again")
            ended = monotonic_seconds()
            wait, due = max(SPACE_CHANGED_SECONDS, SPACE_DUTY * (ended - began)), ended + SPACE_SECONDS_MAX


def _note_replicating(seen: Seen, row: int, one: Replicating) -> None:
    """What remains adds up over the ways; the largest lag counts."""
    seen.replicates[row] = True
    remaining, lag = GAUGE_OF["remaining_bytes"], GAUGE_OF["lag_seconds"]
    if one.remaining_bytes is not None:
        seen.gauges[row, remaining] = np.nansum([seen.gauges[row, remaining], one.remaining_bytes])
    if one.lag_seconds is not None:
        seen.gauges[row, lag] = np.fmax(seen.gauges[row, lag], one.lag_seconds)
