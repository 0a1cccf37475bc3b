"""Schedules of VMs: shown, changed, foretold.  What a VM has not of its own it has from the default set.

Threads: any.  Durable: whatever a method returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from blockdev.errors import InvalidArgument, NotFound
from blockdev.schedule.retention import FOREVER
from blockdev.schedule.rules import Schedule, check_set, shipped
from blockdev.schedule.times import local_zone, runs
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.clock import Clock, seconds_of, to_text
from blockdev.vmmap.model import Terms
from blockdev.vmmap.snapshots import SCHEDULED_CAP, SCHEDULED_SNAPSHOTS_MAX

SHIPPED = "schedules_shipped"
PREVIEW_SECONDS_MAX = 10 * 366 * 86400
PREVIEW_RUNS_MAX = 20_000


@dataclass(frozen=True)
class ScheduleSet:
    """The schedules of a VM, or the default ones."""

    vm: str | None  # None: the default set
    own: bool  # whether the VM has a set of its own
    schedules: list[Schedule]


@dataclass(frozen=True)
class PlannedRun:
    """A snapshot that will be taken."""

    schedule: str
    due: str
    kept_until: str
    consistency: str
    kept_remote_seconds: int | None  # at the other end of each path, from its arrival there; None: it is not sent


@dataclass(frozen=True)
class Preview:
    """What schedules will take of a VM, if nothing fails."""

    vm: str
    until: str
    runs: list[PlannedRun]
    kept_at_most: int  # snapshots of these at one time
    scheduled_snapshots_max: int  # the cap
    cap_reached: str | None  # when the first run fails because of it, what is there already counted, too
    paths: list[str]  # that the VM is protected over


@dataclass(frozen=True)
class Coverage:
    """How all VMs are protected by snapshots, in columns, by name."""

    vm: list[str]
    own: list[bool]  # whether it has a set of its own
    schedule_count: list[int]  # 0: nothing is taken by itself
    newest_snapshot: list[str | None]  # when it was taken, whoever took it


class Schedules:
    """The schedules of one catalog."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    def ship(self) -> None:
        """Give a catalog that never had any the shipped default set."""
        with self._catalog.transaction():
            if self._catalog.setting(SHIPPED) is None:
                self.ship_anew(True)

    def ship_anew(self, wanted: bool) -> None:
        """The default set is the shipped one, or has no schedules, whatever it was."""
        with self._catalog.transaction():
            sets = [one.to_body() for one in shipped(local_zone())] if wanted else []
            self._catalog.set_schedules(None, sets)
            self._catalog.set_setting(SHIPPED, "1")

    def all_sets(self) -> dict[int | None, list[Schedule]]:
        """VM id -> its schedules, for VMs that have their own; None: the default set."""
        return {vm_id: [Schedule(**body) for body in bodies] for vm_id, bodies in self._catalog.schedules().items()}

    def coverage(self) -> Coverage:
        rows = self._catalog.coverage()
        return Coverage(
            [row.name for row in rows],
            [bool(row.own_schedules) for row in rows],
            [row.schedule_count for row in rows],
            [row.newest for row in rows],
        )

    def show(self, vm: str | None = None) -> ScheduleSet:
        """NotFound."""
        with self._catalog.transaction():
            sets = self.all_sets()
            if vm is None:
                return ScheduleSet(None, False, sets.get(None, []))
            row = self._vm(vm)
            own = bool(row.own_schedules)
            return ScheduleSet(vm, own, sets.get(row.id if own else None, []))

    def replace(self, vm: str | None, schedules: list[Schedule] | None) -> ScheduleSet:
        """Give a VM its own set ([]: no schedules; None: the default ones again), or change the default set.

        InvalidArgument; NotFound.
        """
        if schedules is None and vm is None:
            raise InvalidArgument("the default set has no other default: give the schedules that it is to have")
        check_set(schedules or [])
        with self._catalog.transaction(grows=True):
            before = self.show(vm)
            vm_id = None if vm is None else self._vm(vm).id
            bodies = [schedule.to_body() for schedule in schedules or []]
            self._catalog.set_schedules(vm_id, bodies, own=schedules is not None)
            after = self.show(vm)
            self._forget_runs(vm_id, before.schedules, after.schedules)
        return after

    def _forget_runs(self, vm_id: int | None, before: list[Schedule], after: list[Schedule]) -> None:
        """What runs at other times now has missed nothing; that it fails stays known, as its newest good snapshot is kept for that."""
        were, are = ({one.name: (one.at, one.zone) for one in schedules} for schedules in (before, after))
        self._catalog.forget_schedule_runs(vm_id, were.keys() ^ are.keys())
        changed = {name for name in were.keys() & are.keys() if were[name] != are[name]}
        self._catalog.restart_schedule_runs(vm_id, changed, to_text(self._clock()))

    def put(self, vm: str | None, name: str, change: dict[str, Any]) -> ScheduleSet:
        """Add or change one schedule; a VM's own set begins as a copy of the default one.  InvalidArgument; NotFound."""
        with self._catalog.transaction(grows=True):
            known = {schedule.name: schedule for schedule in self.show(vm).schedules}
            if name in known:
                known[name] = replace(known[name], **change)
            elif missing := {"at", "keep_seconds"} - change.keys():
                raise InvalidArgument(f"the new schedule {name} needs {' and '.join(sorted(missing))}")
            else:
                known[name] = Schedule(name, **{"zone": local_zone(), **change})
            return self.replace(vm, list(known.values()))

    def remove(self, vm: str | None, name: str) -> ScheduleSet:
        """NotFound."""
        with self._catalog.transaction(grows=True):
            before = self.show(vm).schedules
            if all(schedule.name != name for schedule in before):
                raise NotFound(f"there is no schedule {name}" + (f" of VM {vm}" if vm else " in the default set"))
            return self.replace(vm, [schedule for schedule in before if schedule.name != name])

    def preview(self, vm: str, seconds: float) -> Preview:
        """What will be taken within so many seconds from now, oldest first; of a VM without disks, as a received one, nothing.

        InvalidArgument: too far ahead; NotFound.
        """
        if not 0 < seconds <= PREVIEW_SECONDS_MAX:
            raise InvalidArgument("a preview goes from now to at most ten years ahead")
        now = self._clock()
        planned: list[tuple[float, float, Schedule]] = []
        with self._catalog.transaction():
            row, cap = self._vm(vm), self.cap()
            schedules = self.show(vm).schedules if self._catalog.disks(row.id) else []
            paths = [guard.path for guard in self._catalog.guards_of([row.id])]
            there = [_end(one) for one in self._catalog.snapshots(row.id) if one.schedule is not None]
        for schedule in schedules:
            for due in runs(*schedule.when(), now, now + seconds):
                planned.append((due, due + schedule.keep_seconds, schedule))
                if len(planned) > PREVIEW_RUNS_MAX:
                    raise InvalidArgument(f"that would be more than {PREVIEW_RUNS_MAX} snapshots: look less far ahead")
        planned.sort(key=lambda one: one[0])
        changes = sorted([(due, 1) for due, _end, _s in planned] + [(end, -1) for _due, end, _s in planned])
        held = most = 0
        for _time, change in changes:
            held += change
            most = max(most, held)
        shown = [
            PlannedRun(s.name, to_text(due), to_text(end), s.consistency, s.remote_seconds() if paths else None)
            for due, end, s in planned
        ]
        failing = _first_over([(due, end) for due, end, _s in planned], there, cap)
        return Preview(vm, to_text(now + seconds), shown, most, cap, None if failing is None else to_text(failing), paths)

    def cap(self) -> int:
        """How many snapshots of schedules a VM may have."""
        return int(self._catalog.setting(SCHEDULED_CAP) or SCHEDULED_SNAPSHOTS_MAX)

    def set_cap(self, cap: int) -> int:
        """InvalidArgument."""
        if not 1 <= cap <= 10_000:
            raise InvalidArgument("the cap of a VM's scheduled snapshots is 1 to 10000")
        with self._catalog.transaction(grows=True):
            self._catalog.set_setting(SCHEDULED_CAP, str(cap))
        return cap

    def terms(self, schedule: Schedule, due: float) -> Terms:
        """Those of the snapshot that a run takes now."""
        expires = to_text(self._clock() + schedule.keep_seconds)
        return Terms("schedule", asked=schedule.consistency, expires=expires, schedule=schedule.name, due=to_text(due))

    def _vm(self, name: str) -> VMRow:
        row = self._catalog.vm(name)
        if row is None:
            raise NotFound(f"there is no VM {name}")
        return row


def _first_over(planned: list[tuple[float, float]], there: list[float], cap: int) -> float | None:
    """When the first run is due that finds as many snapshots as there may be.

    planned: when each is due, in order, and when it expires.  there: when those expire that are there.
    """
    ends = sorted(there)
    for due, end in planned:
        while ends and ends[0] < due:
            heappop(ends)
        if len(ends) >= cap:
            return due
        heappush(ends, end)
    return None


def _end(snapshot: SnapshotRow) -> float:
    """When it goes, if nothing else holds it."""
    times = (snapshot.expires, snapshot.locked_until)
    return FOREVER if snapshot.expires is None else max(seconds_of(time) for time in times if time is not None)
