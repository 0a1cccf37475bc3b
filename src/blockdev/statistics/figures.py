"""What is known of a VM in a span of time, and what people are shown of it.

A `Span` has sums, which add up over spans and over disks; quantiles, of which a longer span has its own; and gauges, of which the
latest counts.  All are arrays with a row for each VM, or for each span of one VM.  Times within are nanoseconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KINDS = ("read", "write", "flush")  # of requests, those that have latencies here
SUMS = (
    *("reads", "writes", "flushes", "read_bytes", "written_bytes"),
    *("read_ns", "write_ns", "flush_ns"),  # of requests, from their arrival to their answer
    *("log_ns", "medium_ns", "compaction_ns"),  # of these, waiting: for a lock or the log, the medium, compaction
    "appended_bytes",  # blocks that reached the pool, zeros and duplicates left out
    *("logical_bytes", "network_bytes"),  # replicated, either way; not known of a VM that is not
)
SPACE = ("live_bytes", "snapshots_bytes", "unique_bytes")  # docs/space.md: data, snapshots, unique
GAUGES = (*("remaining_bytes", "lag_seconds"), *SPACE)  # the first two of replication
REPLICATED = slice(SUMS.index("logical_bytes"), len(SUMS))  # the sums that may be unknown
OF = {name: place for place, name in enumerate(SUMS)}
GAUGE_OF = {name: place for place, name in enumerate(GAUGES)}
CAUSES = ("log", "medium", "compaction")
QUANTILES = (*KINDS, *CAUSES)  # p99 of: a kind's latency; a cause's wait, of all requests of KINDS, whether or not they waited

COLUMNS = (
    *(f"{kind}_iops" for kind in KINDS),
    *("read_bytes_per_second", "write_bytes_per_second", "appended_bytes_per_second"),
    *(f"{kind}_latency_us_{what}" for kind in KINDS for what in ("mean", "p99")),
    "latency_us_mean",
    *(f"wait_{cause}_us" for cause in (*CAUSES, "rest")),
    *(f"wait_{cause}_us_p99" for cause in CAUSES),
    "queue_depth",
    *SPACE,
    "replication_remaining_bytes",
    *("replication_logical_bytes_per_second", "replication_network_bytes_per_second"),
    "replication_lag_seconds",
)
DIGITS = {"queue_depth": 3}  # after the point; of others: bytes and seconds none, the rest two


class Span(NamedTuple):
    """So many rows."""

    seconds: Floats  # (rows,) that were observed; 0: nothing is known
    sums: Floats  # (rows, SUMS)
    p99_ns: Floats  # (rows, QUANTILES); NaN: no such request, or not known
    gauges: Floats  # (rows, GAUGES); NaN: not known


def unknown(count: int) -> Span:
    """So many rows of which nothing is known."""
    empty = [np.full((count, len(names)), np.nan) for names in (SUMS, QUANTILES, GAUGES)]
    return Span(np.zeros(count), *empty)


def columns(span: Span) -> dict[str, Floats]:
    """What people are shown: COLUMNS, NaN for what is not known."""
    seconds = np.where(span.seconds > 0, span.seconds, np.nan)
    sums = {name: span.sums[:, place] for name, place in OF.items()}
    gauges = {name: span.gauges[:, place] for name, place in GAUGE_OF.items()}
    counts = {"read": sums["reads"], "write": sums["writes"], "flush": sums["flushes"]}
    found = {f"{kind}_iops": counts[kind] / seconds for kind in KINDS}
    found["read_bytes_per_second"] = sums["read_bytes"] / seconds
    found["write_bytes_per_second"] = sums["written_bytes"] / seconds
    found["appended_bytes_per_second"] = sums["appended_bytes"] / seconds
    for place, kind in enumerate(KINDS):
        found[f"{kind}_latency_us_mean"] = _per_request(sums[f"{kind}_ns"], counts[kind])
        found[f"{kind}_latency_us_p99"] = span.p99_ns[:, place] / 1000
    total_ns = sums["read_ns"] + sums["write_ns"] + sums["flush_ns"]
    count = sum(counts.values(), np.zeros_like(total_ns))
    rest = found["latency_us_mean"] = _per_request(total_ns, count)
    for place, cause in enumerate(CAUSES, len(KINDS)):
        part = found[f"wait_{cause}_us"] = _per_request(sums[f"{cause}_ns"], count)
        rest = rest - part
        found[f"wait_{cause}_us_p99"] = span.p99_ns[:, place] / 1000
    found["wait_rest_us"] = np.maximum(rest, 0)
    found["queue_depth"] = total_ns / 1e9 / seconds  # Little's law
    for name in SPACE:
        found[name] = gauges[name]
    found["replication_remaining_bytes"] = gauges["remaining_bytes"]
    found["replication_logical_bytes_per_second"] = sums["logical_bytes"] / seconds
    found["replication_network_bytes_per_second"] = sums["network_bytes"] / seconds
    found["replication_lag_seconds"] = gauges["lag_seconds"]
    return {name: found[name] for name in COLUMNS}


def _per_request(total_ns: Floats, count: Floats) -> Floats:
    """Microseconds; NaN without a request."""
    return total_ns / np.where(count > 0, count, np.nan) / 1000


def digits(column: str) -> int:
    if column in DIGITS:
        return DIGITS[column]
    return 0 if "bytes" in column or "seconds" in column else 2


def listed(column: str, values: Floats) -> list[Any]:
    """As JSON has it: None for NaN."""
    known = np.isfinite(values)
    rounded = np.round(np.where(known, values, 0), digits(column))
    plain: list[Any] = rounded.astype(np.int64).tolist() if digits(column) == 0 else rounded.tolist()
    if known.all():
        return plain
    return [value if is_known else None for value, is_known in zip(plain, known.tolist(), strict=True)]


def merged(span: Span, rows_each: int) -> Span:
    """Each `rows_each` rows as one; the number of rows is a multiple of it.

    The p99 of the longer span is taken to be the worst of its parts': what was worse than that in one of them is at most 1 % of all.
    """
    count = len(span.seconds) // rows_each
    shape = (count, rows_each, -1)
    sums, p99, gauges = (part.reshape(shape) for part in (span.sums, span.p99_ns, span.gauges))
    known = span.seconds.reshape(count, rows_each) > 0
    return Span(
        span.seconds.reshape(count, rows_each).sum(axis=1),
        _sum_known(sums, known),
        _worst(p99),
        _latest(gauges, known),
    )


def _sum_known(sums: Floats, known: NDArray[np.bool_]) -> Floats:
    """NaN where none is known."""
    usable = np.isfinite(sums) & known[:, :, None]
    found: Floats = np.where(usable.any(axis=1), np.where(usable, sums, 0).sum(axis=1), np.nan)
    return found


def _worst(values: Floats) -> Floats:
    highest = np.where(np.isnan(values), -1, values).max(axis=1)
    return np.where(highest >= 0, highest, np.nan)


def _latest(gauges: Floats, known: NDArray[np.bool_]) -> Floats:
    usable = np.isfinite(gauges) & known[:, :, None]
    rows = gauges.shape[1]
    last = rows - 1 - usable[:, ::-1].argmax(axis=1)
    found = np.take_along_axis(gauges, last[:, None, :], axis=1)[:, 0]
    return np.where(usable.any(axis=1), found, np.nan)
