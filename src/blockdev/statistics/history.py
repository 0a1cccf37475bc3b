"""The history of all VMs: slots that are open in memory, those that ended in files.

Threads: any; `lock` is held for what touches open slots, and is the service's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.errors import InvalidArgument
from blockdev.statistics import figures, layout
from blockdev.statistics.figures import GAUGE_OF, OF, SPACE, Floats, Span
from blockdev.statistics.layout import RINGS, Ring
from blockdev.statistics.ring_files import RingFiles
from blockdev.statistics.slots import OpenSlots, Seen

SPAN_SECONDS_MAX = RINGS[-1].span_seconds
POINTS_MAX = 2000
HOURS = 24


class Graph(NamedTuple):
    """One VM over some time."""

    since: int  # seconds since 1970
    until: int
    step_seconds: int
    times: NDArray[np.int64]  # when each step began
    columns: dict[str, Floats]  # of figures.COLUMNS


class History:
    """Of one home."""

    def __init__(self, directory: Path) -> None:
        self.lock = threading.RLock()
        self.files = RingFiles(directory)
        self.vms: list[str] = []  # the rows of all arrays, by UUID
        self._open = [OpenSlots(ring) for ring in RINGS]
        self._hours: Floats = np.zeros((0, HOURS))  # bytes appended in each of the last hours that ended, by its number modulo HOURS

    def arrange(self, vms: Sequence[str]) -> list[int]:
        """From now on the rows are these VMs, and no others have history.  Where each was before; -1: it is new."""
        before = {vm: row for row, vm in enumerate(self.vms)}
        rows = [before.get(vm, -1) for vm in vms]
        for slots in self._open:
            slots.rearrange(rows)
        hours = np.zeros((len(vms), HOURS))
        for row, old in enumerate(rows):
            if old >= 0:
                hours[row] = self._hours[old]
        self._hours, self.vms = hours, list(vms)
        return rows

    def delete_others(self) -> None:
        """Files of VMs that are none."""
        known = set(self.vms)
        for vm in self.files.vms():
            if vm not in known:
                self.files.delete(vm)

    def check_files(self) -> None:
        """Before any is read or written."""
        for vm in self.vms:
            self.files.check(vm)

    def resume(self, looked: float) -> None:
        """Go on with the slots that were open when the process before looked last: from the shorter ones in them that ended."""
        short, middle, long = (int(looked // ring.seconds) for ring in RINGS)
        for row, vm in enumerate(self.vms):
            self._complete(vm, 1, middle - 1)
            self._complete(vm, 2, long - 1)
            last = self.files.read(vm, RINGS[0], short, 1)
            begun = middle * RINGS[1].seconds // RINGS[0].seconds
            ended = figures.merged(self.files.read(vm, RINGS[0], begun, short - begun + 1), short - begun + 1)
            self._open[0].resume(short, row, last)
            self._open[1].resume(middle, row, ended)
            self._open[2].resume(long, row, ended)
            begun = long * RINGS[2].seconds // RINGS[1].seconds
            if middle > begun:
                self._open[2].resume(long, row, figures.merged(self.files.read(vm, RINGS[1], begun, middle - begun), middle - begun))
            hours = self.files.read(vm, RINGS[2], long - HOURS + 1, HOURS - 1).sums[:, OF["appended_bytes"]]
            self._hours[row, np.arange(long - HOURS + 1, long) % HOURS] = np.nan_to_num(hours)

    def _complete(self, vm: str, index: int, number: int) -> None:
        """Write the slot that had ended when the process before died, if it had not written it."""
        ring, shorter = RINGS[index], RINGS[index - 1]
        if self.files.read(vm, ring, number, 1).seconds[0] > 0:
            return
        each = ring.seconds // shorter.seconds
        found = figures.merged(self.files.read(vm, shorter, number * each, each), each)
        if found.seconds[0] > 0:
            self.files.write(ring, number, [vm], layout.encode(ring, number, found))

    def add(self, began: float, ended: float, seen: Seen) -> None:
        """What happened between these times; slots that ended with it are written."""
        for slots in self._open:
            before = slots.number
            for number, span in slots.add(began, ended, seen):
                self._write(slots.ring, number, span)
            if slots.ring is RINGS[2]:
                for hour in range(max(before + 1, slots.number - HOURS + 1), slots.number + 1):
                    self._hours[:, hour % HOURS] = 0  # the open one is not in here; others were if anybody looked

    def changed_in_a_day(self) -> Floats:
        """Bytes appended within the last 24 hours, by row; the first of these hours is not whole."""
        open_hour = np.nan_to_num(self._open[2].span().sums[:, OF["appended_bytes"]])
        found: Floats = self._hours.sum(axis=1) + open_hour
        return found

    def stop(self) -> None:
        """Write what is known of the shortest slots; the others are found again in them."""
        slots = self._open[0]
        for number, span in slots.close():
            self._write(slots.ring, number, span)

    def _write(self, ring: Ring, number: int, span: Span) -> None:
        known = np.flatnonzero(span.seconds > 0)
        part = Span(*(values[known] for values in span))
        self.files.write(ring, number, [self.vms[row] for row in known], layout.encode(ring, number, part))
        if ring is RINGS[2]:
            self._hours[:, number % HOURS] = np.nan_to_num(span.sums[:, OF["appended_bytes"]])

    def graph(self, vm: str, since: int, until: int, points: int, now: float) -> Graph:
        """In at most `points` steps.  InvalidArgument: no such time is kept."""
        if not since < until:
            raise InvalidArgument("the end of a graph is after its beginning: give a since that is before until")
        if until - since > SPAN_SECONDS_MAX:
            raise InvalidArgument(f"history is kept for {SPAN_SECONDS_MAX // 86400} days: ask for less at once")
        ring = next((ring for ring in RINGS if now - since <= ring.span_seconds), RINGS[-1])
        first, last = since // ring.seconds, math.ceil(until / ring.seconds)
        each = math.ceil((last - first) / points)
        first -= first % each
        count = math.ceil((last - first) / each)
        if count > points:  # the border of a step is not where the span begins
            each += 1
            first = since // ring.seconds
            first -= first % each
            count = math.ceil((last - first) / each)
        found = self._read(vm, ring, first, count * each, int(now // ring.seconds))
        if ring is RINGS[0]:
            self._fill_space(vm, first, found, now)
        span = figures.merged(found, each)
        times = (first + np.arange(count) * each) * ring.seconds
        return Graph(since, until, ring.seconds * each, times, figures.columns(span))

    def _fill_space(self, vm: str, first: int, found: Span, now: float) -> None:
        """Give slots of the shortest ring from `first` on, which have no room for space, that of the longer slots they are in."""
        longer = RINGS[1]
        numbers = (first + np.arange(len(found.seconds))) * RINGS[0].seconds // longer.seconds
        count = int(numbers[-1] - numbers[0]) + 1
        known = self._read(vm, longer, int(numbers[0]), count, int(now // longer.seconds)).gauges[numbers - numbers[0]]
        for place in (GAUGE_OF[name] for name in SPACE):
            is_missing = np.isnan(found.gauges[:, place]) & (found.seconds > 0)
            found.gauges[is_missing, place] = known[is_missing, place]

    def _read(self, vm: str, ring: Ring, first: int, count: int, newest: int) -> Span:
        """So many slots, gaps where none is kept; the open one, too."""
        begin, end = max(first, newest - ring.slot_count + 1, 0), min(first + count, newest + 1)
        found = figures.unknown(count)
        if begin < end:
            part = self.files.read(vm, ring, begin, end - begin)
            for values, known in zip(found, part, strict=True):
                values[begin - first : end - first] = known
        with self.lock:
            slots = self._open[RINGS.index(ring)]
            if first <= slots.number < first + count and vm in self.vms:
                now = slots.span(self.vms.index(vm))
                if now.seconds[0] > 0:
                    for values, known in zip(found, now, strict=True):
                        values[slots.number - first] = known[0]
        return found
