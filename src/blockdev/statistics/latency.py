"""Requests of disks by how long they took and waited: what the engine counted, and what of it is new since the look before.

A disk's histograms are 10 KB in full, of which almost all is zeros.  So the last answer is kept as the engine gave it, and made
full for a few disks at a time: a thousand VMs would take some 200 MiB at each look.
Threads: one at a time; the service has the lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.engine.statistics import KINDS as ENGINE_KINDS
from blockdev.engine.statistics import LATENCY_BUCKETS, WAITS, EngineStatistics
from blockdev.statistics.counters import LATENCY_KINDS
from blockdev.statistics.figures import CAUSES, KINDS

Whole = NDArray[np.int64]
AT_ONCE = 128  # disks


class Part(NamedTuple):
    """Some disks of a look."""

    places: slice  # among its disks
    counted: Whole  # (disks, QUANTILES, buckets): since the engine's start
    moved: Whole  # likewise, since the look before; zeros when that is not known


class Latency:
    """Of the disks of one home."""

    def __init__(self) -> None:
        self._answer: EngineStatistics | None = None
        self._rows: dict[int, int] = {}  # of its disks, by object id

    def since(self, answer: EngineStatistics, rows: Sequence[int], ids: Sequence[int], restarted: bool) -> Iterator[Part]:
        """All disks of a look, which are these rows of the answer.

        restarted: another engine answered before, so that all that it counts is new.  After a start of ours nothing is known to be.
        """
        before, known = (None, {}) if restarted else (self._answer, self._rows)
        for first in range(0, len(rows), AT_ONCE):
            places = slice(first, min(first + AT_ONCE, len(rows)))
            counted = _histograms(answer, rows[places])
            moved = counted.copy() if before is not None or restarted else np.zeros_like(counted)
            met = [place for place, id in enumerate(ids[places]) if id in known]
            if before is not None and met:
                moved[met] -= _histograms(before, [known[ids[first + place]] for place in met])
            yield Part(places, counted, np.maximum(moved, 0))

    def keep(self, answer: EngineStatistics, rows: Sequence[int], ids: Sequence[int]) -> None:
        """It is the last look from now on."""
        self._answer, self._rows = answer, dict(zip(ids, rows, strict=True))

    def of(self, object_id: int) -> Whole:
        """(figures.KINDS, buckets) of a disk of the last look, since the engine's start."""
        assert self._answer is not None
        found: Whole = _histograms(self._answer, [self._rows[object_id]])[0, : len(KINDS)]
        return found


def _histograms(answer: EngineStatistics, rows: Sequence[int]) -> Whole:
    """(rows, QUANTILES, buckets)."""
    latency = answer.latency(rows)[:, :LATENCY_KINDS]
    waits = answer.waits(rows)
    found = np.zeros((len(rows), len(CAUSES), LATENCY_BUCKETS), np.int64) if waits is None else waits
    return np.concatenate((latency, found), axis=1)


assert ENGINE_KINDS[: len(KINDS)] == KINDS and WAITS == CAUSES  # a histogram is found by its place
