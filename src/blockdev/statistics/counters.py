"""What the engine counts of a disk, as one row of whole numbers: what totals keep, and what history makes its sums of.

The latency histogram is kept coarsely, in buckets whose ends are powers of four of nanoseconds: exact ones of the engine's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockdev.constants import BLOCK_BYTES
from blockdev.engine.statistics import KINDS, bucket_bounds_ns
from blockdev.statistics import figures
from blockdev.statistics.figures import OF, SUMS

Whole = NDArray[np.int64]

OF_KIND = ("operations", "bytes", "latency_ns", "lock_ns", "log_ns", "medium_ns", "compaction_ns")
BLOCKS = ("blocks_appended", "blocks_deduplicated", "blocks_unchanged", "blocks_zero", "blocks_cold")
MOVED = ("replicated_read_bytes", "replicated_written_bytes", "transferred_read_bytes", "transferred_written_bytes")
PLAIN = ("failed", *BLOCKS, *MOVED)
COARSE_NS = tuple(1 << power for power in range(14, 33, 2))  # 16 us to 4.3 s, ends of buckets; one more for the rest
_COARSE = len(COARSE_NS) + 1
LATENCY_KINDS = len(figures.KINDS)

_KIND_COUNT = len(KINDS) * len(OF_KIND)
_LATENCY_AT = _KIND_COUNT + len(PLAIN)
COUNT = _LATENCY_AT + LATENCY_KINDS * _COARSE


def place(kind: str, what: str) -> int:
    """Of a number of one kind of requests."""
    return KINDS.index(kind) * len(OF_KIND) + OF_KIND.index(what)


def plain(what: str) -> int:
    return _KIND_COUNT + PLAIN.index(what)


def coarse(kind: int) -> slice:
    """The histogram of a kind of figures.KINDS: requests by latency, below each of COARSE_NS and not below the one before."""
    return slice(_LATENCY_AT + kind * _COARSE, _LATENCY_AT + (kind + 1) * _COARSE)


def counters(rows: NDArray[Any], latency: NDArray[Any]) -> Whole:
    """(rows, COUNT) of the engine's rows, and of their histograms (rows, kinds, buckets)."""
    found = np.zeros((len(rows), COUNT), np.int64)
    for index, kind in enumerate(KINDS):
        for what in OF_KIND:
            found[:, place(kind, what)] = rows["kinds"][what][:, index]
    for what in PLAIN:
        found[:, plain(what)] = rows[what]
    for index in range(LATENCY_KINDS):
        found[:, coarse(index)] = np.add.reduceat(latency[:, index].astype(np.int64), _COARSE_STARTS, axis=1)
    return found


def sums(moved: Whole) -> Whole:
    """(rows, SUMS) of differences of counters; those of replication, which the engine does not count, are 0."""
    found = np.zeros((len(moved), len(SUMS)), np.int64)
    for name, kind, what in (
        *(("reads", "read", "operations"), ("writes", "write", "operations"), ("flushes", "flush", "operations")),
        *(("read_bytes", "read", "bytes"), ("written_bytes", "write", "bytes")),
        *((f"{kind}_ns", kind, "latency_ns") for kind in figures.KINDS),
    ):
        found[:, OF[name]] = moved[:, place(kind, what)]
    for kind in figures.KINDS:
        found[:, OF["log_ns"]] += moved[:, place(kind, "lock_ns")] + moved[:, place(kind, "log_ns")]
        found[:, OF["medium_ns"]] += moved[:, place(kind, "medium_ns")]
        found[:, OF["compaction_ns"]] += moved[:, place(kind, "compaction_ns")]
    found[:, OF["appended_bytes"]] = moved[:, plain("blocks_appended")] * BLOCK_BYTES
    return found


def _starts() -> list[int]:
    bounds = bucket_bounds_ns().tolist()
    return [0, *(bounds.index(end) for end in COARSE_NS)]


_COARSE_STARTS = _starts()
