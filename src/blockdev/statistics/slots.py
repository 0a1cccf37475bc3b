"""The slots that are open: what becomes of VMs from the beginning of a slot to its end, for each ring.

All VMs are rows of the same arrays, so that a second of a thousand VMs costs some milliseconds.  Sums are whole numbers: those of
a long slot are exactly those of the short ones in it.  The p99 of a slot comes from the histogram of all its requests.
Threads: one at a time; the service has the lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.engine.statistics import LATENCY_BUCKETS, bucket_bounds_ns, quantile_ns
from blockdev.statistics.figures import CAUSES, GAUGES, KINDS, OF, QUANTILES, REPLICATED, SUMS, Floats, Span
from blockdev.statistics.layout import Ring

Whole = NDArray[np.int64]
QUANTILE = 0.99


class Seen(NamedTuple):
    """What happened within some time, a row for each VM."""

    sums: Whole  # (rows, SUMS)
    histograms: Whole  # (rows, QUANTILES, buckets): requests by latency, by wait (none: the first bucket); all 0 when not known
    gauges: Floats  # (rows, GAUGES)
    replicates: NDArray[np.bool_]  # (rows,): its sums of replication are known


class OpenSlots:
    """Those of one ring."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.number = 0  # of the slot: it begins at number * ring.seconds
        self._seconds: Floats = np.zeros(0)
        self._sums: Whole = np.zeros((0, len(SUMS)), np.int64)
        self._histograms: Whole = np.zeros((0, len(QUANTILES), LATENCY_BUCKETS), np.int64)
        self._gauges: Floats = np.zeros((0, len(GAUGES)))
        self._replicates = np.zeros(0, np.bool_)

    def rearrange(self, before: Sequence[int]) -> None:
        """From now on the rows are these of before; -1: a new one."""
        rows = np.array(before, np.int64)
        self._seconds = _taken(self._seconds, rows, 0)
        self._sums = _taken(self._sums, rows, 0)
        self._histograms = _taken(self._histograms, rows, 0)
        self._gauges = _taken(self._gauges, rows, np.nan)
        self._replicates = _taken(self._replicates, rows, False)

    def resume(self, number: int, row: int, span: Span) -> None:
        """Begin the slot of this number with what is known of its part that is over: the one row of `span`."""
        self.number = number
        if span.seconds[0] <= 0:
            return
        self._seconds[row] += span.seconds[0]
        self._sums[row] += np.nan_to_num(span.sums[0]).astype(np.int64)
        self._replicates[row] |= bool(np.isfinite(span.sums[0, REPLICATED]).any())
        self._gauges[row] = np.where(np.isfinite(span.gauges[0]), span.gauges[0], self._gauges[row])
        counts = [int(self._sums[row, OF[name]]) for name in ("reads", "writes", "flushes")]
        counts += [sum(counts)] * len(CAUSES)
        for place, (name, count) in enumerate(zip(QUANTILES, counts, strict=True)):
            if count and np.isfinite(span.p99_ns[0, place]):
                slow = count // 50  # twice as many as the slowest 1 %, so that these have the p99 they had
                p99, mean = span.p99_ns[0, place], self._sums[row, OF[f"{name}_ns"]] / count
                self._histograms[row, place, _bucket(p99)] += slow
                self._histograms[row, place, _bucket(min(mean, p99))] += count - slow  # a few may be so slow that the mean is above it

    def add(self, began: float, ended: float, seen: Seen) -> Iterator[tuple[int, Span]]:
        """What happened between these times (seconds since 1970).  Yields the slots that ended with it: their numbers, all rows."""
        parts = _split(began, ended, self.ring.seconds)
        longest = max(parts, key=lambda part: part[1])[0]
        given = np.zeros_like(seen.sums)
        for number, seconds in parts:
            if number != self.number:
                yield from self.close()
                self.number = number
            until = seen.sums
            if number != parts[-1][0]:  # the same at an end of slots of two rings
                until = (seen.sums * (((number + 1) * self.ring.seconds - began) / (ended - began))).astype(np.int64)
            self._sums += until - given
            given = until
            self._seconds += seconds
            self._replicates |= seen.replicates
            np.copyto(self._gauges, seen.gauges, where=np.isfinite(seen.gauges))
            if number == longest:
                self._histograms += seen.histograms

    def close(self) -> Iterator[tuple[int, Span]]:
        """The open slot, if anything is known of it; what follows begins with nothing."""
        if self.number and (self._seconds > 0).any():
            yield self.number, self.span()
        for part in (self._seconds, self._sums, self._histograms):
            part[:] = 0
        self._gauges[:] = np.nan
        self._replicates[:] = False

    def span(self, row: int | None = None) -> Span:
        """What is known of the open slot: of one VM, or of all."""
        rows = slice(None) if row is None else slice(row, row + 1)
        sums = self._sums[rows].astype(np.float64)
        sums[~self._replicates[rows], REPLICATED] = np.nan
        return Span(self._seconds[rows].copy(), sums, p99_ns(self._histograms[rows]), self._gauges[rows].copy())


def p99_ns(histograms: Whole) -> Floats:
    """(rows, QUANTILES) of Seen's histograms.  A wait that is in the first bucket was none."""
    found = quantile_ns(histograms, QUANTILE)
    waits = found[:, len(KINDS) :]
    waits[waits <= _BOUNDS_NS[1]] = 0
    return found


def _split(began: float, ended: float, seconds: int) -> list[tuple[int, float]]:
    """(number of a slot, seconds of it) for each slot that the time is in."""
    first, last = int(began // seconds), int(ended // seconds)
    parts = [
        (number, min(ended, (number + 1) * seconds) - max(began, number * seconds)) for number in range(first, max(first, last) + 1)
    ]
    return [part for part in parts if part[1] > 0] or [(last, 0.0)]


def _bucket(latency_ns: float) -> int:
    return int(np.searchsorted(_BOUNDS_NS[1:], latency_ns, side="right").clip(0, LATENCY_BUCKETS - 1))


def _taken(values: NDArray[Any], rows: NDArray[np.int64], new: Any) -> NDArray[Any]:
    found = np.full((len(rows), *values.shape[1:]), new, values.dtype)
    known = rows >= 0
    found[known] = values[rows[known]]
    return found


_BOUNDS_NS = bucket_bounds_ns()
