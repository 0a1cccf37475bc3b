"""What the engine counted of its guests' requests, as its socket tells of it: the layout, for numpy, and what to make of it.

Every number is a sum since the engine started (docs/format/engine-socket.md, "Statistics"); rates are differences between two
answers of one instance.  Rows of another engine may be shorter, their last fields being unknown to it: then those are zeros;
or longer: then the rest is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.engine.protocol import ProtocolError, check_field

KINDS = ("read", "write", "flush", "discard", "write_zeroes")
CAUSES = ("lock", "log", "medium", "compaction")
WAIT_KINDS, WAITS = KINDS[:3], ("log", "medium", "compaction")  # the histograms of waits: of requests of which kinds; log: and lock
SIZE_BUCKETS = 18
LATENCY_BUCKETS = 210
FIRST_OCTAVE, LAST_OCTAVE, SUB_BUCKETS = 10, 35, 8  # 2^10 ns is the first bound of a latency bucket, 2^36 ns the last
ROW_BYTES_MIN, ROW_BYTES_MAX = 1104, 1 << 16  # the rows of the first engines that had any

KIND = np.dtype(
    [
        ("operations", "<u8"),
        ("bytes", "<u8"),
        ("latency_ns", "<u8"),
        *((f"{cause}_ns", "<u8") for cause in CAUSES),
        ("sizes", "<u8", (SIZE_BUCKETS,)),
    ]
)
ROW = np.dtype(
    [
        ("id", "<u8"),
        ("time_ns", "<u8"),
        ("in_flight", "<u8"),
        ("failed", "<u8"),
        ("kinds", KIND, (len(KINDS),)),
        *((f"blocks_{kind}", "<u8") for kind in ("appended", "deduplicated", "unchanged", "zero", "cold")),
        *(
            (f"{service}_{direction}_bytes", "<u8")
            for service in ("replicated", "transferred")
            for direction in ("read", "written")
        ),
    ]
)
CELL = np.dtype([("row", "<u4"), ("kind", "<u2"), ("bucket", "<u2"), ("count", "<u8")])


class EngineStatistics(NamedTuple):
    """What one engine process counted for some vdisks, in the order of their ids."""

    instance: bytes  # of the engine process: with another one, all counts began anew
    monotonic_ns: int  # when the answer was made, by the clock that `time_ns` of the rows is of
    rows: NDArray[Any]  # of ROW
    cells: NDArray[Any]  # of CELL: the latency histograms, where they are not zero
    wait_cells: NDArray[Any] | None  # of CELL, `kind` being a place in WAITS; None: an engine that does not tell

    def latency(self, rows: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The histograms in full, of all rows or of these: rows x kinds x LATENCY_BUCKETS, requests in each."""
        return _full(self.cells, len(self.rows), len(KINDS), rows)

    def waits(self, rows: Sequence[int] | None = None) -> NDArray[np.int64] | None:
        """By cause, requests of WAIT_KINDS by how long they waited: rows x WAITS x LATENCY_BUCKETS, who did not in the first bucket."""
        if self.wait_cells is None:
            return None
        full = _full(self.wait_cells, len(self.rows), len(WAITS), rows)
        of_rows = self.rows if rows is None else self.rows[np.asarray(rows, np.int64)]
        requests = of_rows["kinds"]["operations"][:, : len(WAIT_KINDS)].sum(axis=1).astype(np.int64)
        full[:, :, 0] += np.maximum(requests[:, None] - full.sum(axis=2), 0)
        return full


def _full(cells: NDArray[Any], row_count: int, kind_count: int, rows: Sequence[int] | None) -> NDArray[np.int64]:
    wanted = np.arange(row_count) if rows is None else np.asarray(rows, np.int64)
    place = np.full(row_count, -1)
    place[wanted] = np.arange(len(wanted))
    full = np.zeros((len(wanted), kind_count, LATENCY_BUCKETS), np.int64)
    found = cells[place[cells["row"]] >= 0]
    full[place[found["row"]], found["kind"], found["bucket"]] = found["count"]
    return full


def bucket_bounds_ns() -> NDArray[np.int64]:
    """The LATENCY_BUCKETS + 1 bounds; a bucket has what is at least its lower bound and less than the next.  The last is open."""
    octaves = np.arange(FIRST_OCTAVE, LAST_OCTAVE + 1, dtype=np.int64)
    inner = ((1 << octaves)[:, None] // SUB_BUCKETS * (SUB_BUCKETS + np.arange(SUB_BUCKETS))).ravel()
    end = 1 << (LAST_OCTAVE + 1)
    return np.concatenate(([0], inner, [end, 2 * end])).astype(np.int64)


def quantile_ns(counts: NDArray[Any], quantile: float) -> NDArray[np.float64]:
    """The latency that `quantile` (0 to 1) of the requests took at most, to 6 %; nan where there are none.

    counts: ... x LATENCY_BUCKETS.  Within a bucket requests are taken to lie evenly.
    """
    bounds = bucket_bounds_ns().astype(np.float64)
    up_to = np.cumsum(counts, axis=-1, dtype=np.float64)
    total = up_to[..., -1:]
    wanted = quantile * total
    bucket = np.minimum((up_to < wanted).sum(axis=-1, keepdims=True), LATENCY_BUCKETS - 1)
    inside = np.take_along_axis(np.asarray(counts, dtype=np.float64), bucket, axis=-1)
    before = np.take_along_axis(up_to, bucket, axis=-1) - inside
    share = np.divide(wanted - before, inside, out=np.ones_like(inside), where=inside > 0)
    found = bounds[bucket] + share * (bounds[bucket + 1] - bounds[bucket])
    return np.where(total > 0, found, np.nan)[..., 0]


def check_statistics(pages: Sequence[Mapping[str, Any]]) -> EngineStatistics:
    """What the answers to `statistics`, one after the other, tell of."""
    rows, cells, waits, count = [], [], [], 0
    for page in pages:
        of_page = _check_rows(check_field(page, "rows", bytes), check_field(page, "row_bytes", int))
        rows.append(of_page)
        cells.append(_check_cells(check_field(page, "cells", bytes), len(of_page), count, len(KINDS)))
        if "waits" in page:
            waits.append(_check_cells(check_field(page, "waits", bytes), len(of_page), count, len(WAITS)))
        count += len(of_page)
    instances = {check_field(page, "instance", bytes) for page in pages}
    if len(instances) != 1:
        raise ProtocolError("the engine was restarted between two parts of its statistics")
    monotonic_ns = check_field(pages[-1], "monotonic_ns", int)
    wait_cells = np.concatenate(waits) if len(waits) == len(pages) else None
    return EngineStatistics(instances.pop(), monotonic_ns, np.concatenate(rows), np.concatenate(cells), wait_cells)


def _check_rows(data: bytes, row_bytes: int) -> NDArray[Any]:
    if not ROW_BYTES_MIN <= row_bytes <= ROW_BYTES_MAX or len(data) % row_bytes:
        raise ProtocolError("the engine told of statistics whose rows are none")
    if row_bytes == ROW.itemsize:
        return np.frombuffer(data, ROW)
    known = min(row_bytes, ROW.itemsize)
    rows = np.zeros((len(data) // row_bytes, ROW.itemsize), dtype=np.uint8)
    rows[:, :known] = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)[:, :known]
    return rows.reshape(-1).view(ROW)


def _check_cells(data: bytes, row_count: int, rows_before: int, kind_count: int) -> NDArray[Any]:
    """The cells of one part, with rows counted over all parts."""
    if len(data) % CELL.itemsize:
        raise ProtocolError("the engine told of statistics whose cells are none")
    cells = np.frombuffer(data, CELL)
    if len(cells) and (
        cells["row"].max() >= row_count
        or cells["kind"].max() >= kind_count
        or cells["bucket"].max() >= LATENCY_BUCKETS
    ):
        raise ProtocolError("the engine told of a latency that is none")
    if rows_before:
        cells = cells.copy()
        cells["row"] += rows_before
    return cells
