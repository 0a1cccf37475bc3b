"""Runs schedules: takes what is due, lets go of what expired.

A run is due once: `handled` says until when a VM's schedule is done with, and is written with the snapshot in one
transaction.  After a downtime the latest of the missed runs is caught up.  When the
clock was set back by less than CLOCK_BACK_SECONDS_MAX, runs go on when it has come to where it was; by more, they begin anew.

Threads: one runs rounds, and has up to FREEZING_MAX others for runs that freeze their guests, as these wait for guests most of
their time; a round ends when all of its runs have.  `kick` from any.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from blockdev.clock import monotonic_seconds
from blockdev.engine.client import EngineRestarted
from blockdev.errors import BlockdevError, NotFound, Unavailable
from blockdev.quiesce.snapshots import take_snapshot
from blockdev.schedule.retention import FOREVER, Kept, expired
from blockdev.schedule.rules import Schedule
from blockdev.schedule.service import Schedules
from blockdev.schedule.times import latest_run, next_run, parse_when, parse_zone
from blockdev.vmmap.catalog import Catalog, RunRow, SnapshotRow, VMRow
from blockdev.vmmap.clock import Clock, seconds_of, to_text
from blockdev.vmmap.events import Events
from blockdev.vmmap.holds import Rules, held_ids
from blockdev.vmmap.model import Snapshot, Terms
from blockdev.vmmap.names import is_unfinished
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs
from blockdev.written import show_count

logger = logging.getLogger(__name__)

CLOCK_BACK_SECONDS_MAX = 2 * 3600.0  # as far as a daylight-saving change or two
PER_SECOND_MAX = 60  # snapshots, when many VMs are due at once
FREEZING_MAX = 8  # guests at once
EXPIRED_AT_ONCE = 200
LOOK_SECONDS_MAX = 20.0  # between two rounds: VMs and schedules come and go


class Due(NamedTuple):
    """A run that is to be done."""

    vm: VMRow
    schedule: Schedule
    due: float
    failures: int  # of the runs before


class Round(NamedTuple):
    """What a round did."""

    taken: int
    failed: int
    deleted: int


class RoundEnded(NamedTuple):
    """A round that did something, for the history."""

    done: Round
    began: float  # seconds since 1970
    error: BlockdevError | None  # what ended it before all was done


class Scheduler:
    """The runs of one home."""

    def __init__(
        self,
        vms: VMs,
        catalog: Catalog,
        schedules: Schedules,
        clock: Clock,
        wait: Callable[[float], object] | None = None,
        events: Events | None = None,
        ended: Callable[[RoundEnded], None] | None = None,
    ) -> None:
        """wait(seconds): between two snapshots of VMs that are due at once.  ended: is told of rounds that did something."""
        self._vms = vms
        self._catalog = catalog
        self._schedules = schedules
        self._clock = clock
        self._stopping = threading.Event()
        self._kicked = threading.Event()
        self._wait = wait or self._stopping.wait
        self._events = events or Events(Recorder(catalog).put, clock)
        self._ended = ended
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="schedules", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no more snapshots, and wait for those that are being taken."""
        self._stopping.set()
        self._kicked.set()
        if self._thread is not None:
            self._thread.join()

    def kick(self) -> None:
        """Look again now: schedules have changed."""
        self._kicked.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except Unavailable:
                logger.info("the engine is away: schedules wait for it")
            except BlockdevError as error:
                logger.warning("schedules: %s", error.message)
            except Exception:
                logger.exception("a round of schedules failed; the next one tries again")
            self._kicked.wait(LOOK_SECONDS_MAX)
            self._kicked.clear()

    def round(self) -> Round:
        """Do all that is due now.  Unavailable: the engine is away; what was not done is due still."""
        began = self._clock()
        runs = _Runs(self._take, self._stopping)
        deleted, error = 0, None
        try:
            self._run_due(runs)
            # last, so that the newest one of a schedule stays when the run that would have replaced it fails
            for count in self._expire():
                deleted += count
        except BlockdevError as failure:
            error = failure
            raise
        finally:
            done = Round(runs.taken, runs.failed, deleted)
            if self._ended is not None and any(done):
                self._ended(RoundEnded(done, began, error))
        return done

    def _run_due(self, runs: _Runs) -> None:
        dues, rows = self._due()
        started = monotonic_seconds()
        try:
            with runs:
                for number, due in enumerate(dues):
                    self._wait(max(number / PER_SECOND_MAX - (monotonic_seconds() - started), 0.0))
                    if runs.are_over():
                        break
                    runs.do(due)
        finally:
            rows += runs.rows
            if rows:
                with self._catalog.transaction():
                    self._catalog.put_schedule_runs(self._still_there(rows))

    def _still_there(self, rows: list[RunRow]) -> Iterator[RunRow]:
        """Those whose schedule was not taken away meanwhile: one that failed would keep its newest snapshot for ever."""
        sets = self._schedules.all_sets()
        for row in rows:
            vm = self._catalog.vm_by_id(row.vm_id)
            if vm and any(one.name == row.schedule for one in sets.get(vm.id if vm.own_schedules else None, [])):
                yield row

    def run_now(self, vm: str, schedule: str) -> str:
        """Take the snapshot of a VM's schedule as if it were due; returns its name.  NotFound, and what a snapshot raises."""
        found = [one for one in self._schedules.show(vm).schedules if one.name == schedule]
        if not found:
            raise NotFound(f"VM {vm} has no schedule {schedule}")
        now = self._clock()
        terms = self._schedules.terms(found[0], now)
        name = self._name(vm, found[0], now)
        row = self._catalog.vm(vm)
        failures = sum(run.failures for run in self._catalog.schedule_runs() if row and run[:2] == (row.id, schedule))
        taken = self._take_snapshot(vm, name, terms, found[0])
        self._note_success(vm, schedule, failures)
        return taken.name

    def _take_snapshot(self, vm: str, name: str, terms: Terms, schedule: Schedule) -> Snapshot:
        return take_snapshot(
            self._vms, vm, name, terms=terms, if_not_frozen=schedule.if_not_frozen, limit_seconds=schedule.freeze_seconds_max
        )

    def _due(self) -> tuple[list[Due], list[RunRow]]:
        """What is to be done, spread by VM; and rows of what was seen for the first time, or was ahead of the clock."""
        now = self._clock()
        with self._catalog.transaction():
            sets, vms = self._schedules.all_sets(), self._catalog.vms()
            known = {(row.vm_id, row.schedule): row for row in self._catalog.schedule_runs()}
        dues, rows = [], []
        for vm in vms:
            if is_unfinished(vm.description):
                continue  # its schedules begin when all of it is there
            for schedule in sets.get(vm.id if vm.own_schedules else None, []):
                key = (vm.id, schedule.name)
                row = known.get(key) or RunRow(*key, to_text(now), 0, None)
                handled = seconds_of(row.handled)
                if handled > now + CLOCK_BACK_SECONDS_MAX:
                    self._events.note("warning", "schedule", vm.name, f"the clock was set back: schedule {schedule.name} begins anew")
                    handled = now
                    row = row._replace(handled=to_text(now))
                    rows.append(row)
                elif key not in known:
                    rows.append(row)
                if _next(schedule.at, schedule.zone, handled) <= now:
                    due = _latest(schedule.at, schedule.zone, handled, now)
                    dues.append(Due(vm, schedule, due, row.failures))
        return sorted(dues, key=lambda one: (one.due, _spread(one.vm))), rows

    def _take(self, due: Due) -> RunRow | None:
        """Take a snapshot, which notes its run (None), or say what is to be noted.  Unavailable: the run stays due."""
        schedule = due.schedule
        done = RunRow(due.vm.id, schedule.name, to_text(due.due), 0, None)
        vm = self._catalog.vm_by_id(due.vm.id)  # it may have been renamed since
        if vm is None or not self._catalog.disks(vm.id):
            return done
        try:
            terms = self._schedules.terms(schedule, due.due)
            name = self._name(vm.name, schedule, due.due)
            self._take_snapshot(vm.name, name, terms, schedule)
        except (Unavailable, EngineRestarted):
            raise
        except BlockdevError as error:
            if isinstance(error, NotFound) and self._catalog.vm_by_id(vm.id) is None:  # not a disk of it
                return done
            if due.failures == 0:
                self._events.note("error", "schedule", vm.name, f"schedule {schedule.name} failed: {error.message}")
            return done._replace(failures=due.failures + 1, error=error.message)
        self._note_success(vm.name, schedule.name, due.failures)
        return None

    def _note_success(self, vm: str, schedule: str, failures: int) -> None:
        """failures: of the runs before."""
        if failures:
            self._events.note("info", "schedule", vm, f"schedule {schedule} works again after {show_count(failures, 'failed run')}")

    def _name(self, vm: str, schedule: Schedule, due: float) -> str:
        """Of a run's snapshot, by the schedule's local time."""
        local = datetime.fromtimestamp(due, parse_zone(schedule.zone))
        name = first = f"{schedule.name}-{local:%Y%m%d-%H%M}"
        row = self._catalog.vm(vm)
        number = 2
        while row is not None and self._catalog.snapshot(row.id, name) is not None:  # an hour that came twice
            name, number = f"{first}-{number}", number + 1
        return name

    def _expire(self) -> Iterator[int]:
        """Delete what retention lets go, and say each time how many went."""
        now = self._clock()
        candidates: dict[int, list[SnapshotRow]] = defaultdict(list)
        failing: dict[int, set[str]] = defaultdict(set)
        with self._catalog.transaction():
            rules = Rules(self._catalog)
            for row in self._catalog.snapshots_expired(to_text(now)):
                candidates[row.vm_id].append(row)
            for run in self._catalog.schedule_runs():
                if run.failures:
                    failing[run.vm_id].add(run.schedule)
            going = [
                row.id
                for vm_id, rows in candidates.items()
                for row in _going(rows, self._catalog, now, failing[vm_id], rules)
            ]
        for first in range(0, len(going), EXPIRED_AT_ONCE):
            if self._stopping.is_set():
                break
            yield len(self._vms.expire_snapshots(going[first : first + EXPIRED_AT_ONCE]))


class _Runs:
    """The runs of one round: each where it is to be done, and what is to be noted of them.

    Runs that freeze are done by threads of their own, those of one VM one after the other, as an agent has one client at a time;
    leaving the context waits for them.  The first run that an engine cannot do keeps the others from beginning, and is raised then.
    """

    def __init__(self, take: Callable[[Due], RunRow | None], stopping: threading.Event) -> None:
        self.taken = self.failed = 0
        self.rows: list[RunRow] = []
        self._take = take
        self._stopping = stopping
        self._halted = threading.Event()
        self._freezing: list[Future[None]] = []
        self._lock = threading.Lock()  # guards the counts and rows; taken alone, or under one of the next
        self._agents: dict[int, threading.Lock] = defaultdict(threading.Lock)  # by VM id
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, kind: object, *_failure: object) -> None:
        if kind is not None:
            self._halted.set()
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        for one in self._freezing if kind is None else ():
            one.result()

    def are_over(self) -> bool:
        return self._stopping.is_set() or self._halted.is_set()

    def do(self, due: Due) -> None:
        """Unavailable, EngineRestarted; of those that freeze when all are over."""
        if due.schedule.consistency != "vm":
            self._do(due)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(FREEZING_MAX, thread_name_prefix="freeze")
        self._freezing.append(self._threads.submit(self._do_alone, due, self._agents[due.vm.id]))

    def _do_alone(self, due: Due, agent: threading.Lock) -> None:
        with agent:
            self._do(due)

    def _do(self, due: Due) -> None:
        if self.are_over():
            return
        try:
            row = self._take(due)
        except BaseException:
            self._halted.set()
            raise
        with self._lock:
            if row is None:
                self.taken += 1
            else:
                self.rows.append(row)
                self.failed += row.failures > 0


def _going(
    rows: list[SnapshotRow], catalog: Catalog, now: float, failing: set[str], rules: Rules
) -> Iterator[SnapshotRow]:
    """Of one VM's expired snapshots those that may go; the newest of a failing schedule may not, nor what replication needs."""
    vm = catalog.vm_by_id(rows[0].vm_id)
    held = held_ids(catalog, vm, rules) if vm is not None else set()
    newest = {schedule: catalog.newest_of_schedule(rows[0].vm_id, schedule) for schedule in failing}
    kept = [_kept(row, row.id in held) for row in {row.id: row for row in [*rows, *(one for one in newest.values() if one)]}.values()]
    names = {one.name for one in expired(kept, now, failing)}
    return (row for row in rows if row.name in names)


def _kept(row: SnapshotRow, is_held: bool) -> Kept:
    return Kept(
        row.name,
        row.schedule,
        row.lsn,
        FOREVER if row.expires is None else seconds_of(row.expires),
        0.0 if row.locked_until is None else seconds_of(row.locked_until),
        is_held,
    )


def _spread(vm: VMRow) -> bytes:
    """An order of VMs that has nothing to do with their names: neighbours are not snapshotted together."""
    return hashlib.blake2b(vm.uuid.encode(), digest_size=8).digest()


@lru_cache(maxsize=1024)
def _latest(at: str, zone: str, handled: float, now: float) -> float:
    """The run that is caught up, when there is one."""
    due = latest_run(parse_when(at), parse_zone(zone), handled, now)
    assert due is not None
    return due


@lru_cache(maxsize=65536)
def _next(at: str, zone: str, handled: float) -> float:
    return next_run(parse_when(at), parse_zone(zone), handled)
