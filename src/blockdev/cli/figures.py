"""Statistics in words and cells: of one VM, as columns of a table, and single numbers, of which None is not known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from blockdev.written import show_size

Row = dict[str, Any]
HEADERS = ("VM", "READ/S", "WRITE/S", "READ", "WRITE", "LATENCY", "P99 READ", "P99 WRITE", "QUEUE", "GROWTH/DAY")
CAUSES = (("log", "a lock or the log"), ("medium", "the medium"), ("compaction", "compaction"), ("rest", "none of these"))
SORTS: dict[str, Callable[[Row], float]] = {
    "iops": lambda row: iops(row),
    "throughput": lambda row: _number(row["read_bytes_per_second"]) + _number(row["write_bytes_per_second"]),
    "latency": lambda row: _number(row["latency_us_mean"]),
    "growth": lambda row: float(row["changed_bytes_day"]),
}


def rows_of(columns: Row) -> list[Row]:
    """Columns of an answer as rows."""
    names = list(columns)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def vm_fields(found: Row) -> list[tuple[str, str]]:
    fields = [("VM", found["vm"])]
    if not found["engine_running"]:
        fields.append(("engine", "does not answer: what follows is what was known before"))
    kinds = ("read", "write", "flush")
    fields += [("requests", ", ".join(f"{count(found[f'{kind}_iops'])} {kind}/s" for kind in kinds))]
    fields += [
        ("throughput", f"{speed(found['read_bytes_per_second'])} read, {speed(found['write_bytes_per_second'])} written"),
        ("latency", ", ".join(f"{kind} {_latency(found, kind)}" for kind in kinds)),
        ("waits", _waits(found)),
        ("queue", f"{decimal(found['queue_depth'])} on the average, {found['in_flight']} now"),
        ("appended", f"{speed(found['appended_bytes_per_second'])}, {show_size(found['changed_bytes_day'])} in the last 24 h"),
    ]
    if found["live_bytes"] is not None:
        live, snapshots, unique = (show_size(found[f"{what}_bytes"]) for what in ("live", "snapshots", "unique"))
        fields.append(("space", f"{live} data, {snapshots} held by snapshots, {unique} its own"))
    if found["replication_lag_seconds"] is not None:
        fields.append(("replication", _replication(found)))
    totals = found["totals"]
    fields += [(f"all {kind}s", _total(totals[kind])) for kind in ("read", "write")]
    return fields + [(f"disk {disk['disk']}", _disk(disk)) for disk in found["disks"]]


def _waits(found: Row) -> str:
    """How the mean latency divides, and how long the slowest waits for a cause were."""
    total = found["latency_us_mean"]
    if not total:
        return "-"
    parts = []
    for cause, words in CAUSES:
        p99 = found.get(f"wait_{cause}_us_p99")  # none of the rest
        parts.append(f"{found[f'wait_{cause}_us'] / total:.0%} {words}" + (f" (p99 {microseconds(p99)})" if p99 else ""))
    return ", ".join(parts)


def _replication(found: Row) -> str:
    remaining = found["replication_remaining_bytes"]
    left = "" if remaining is None else f", {show_size(remaining)} remaining"
    logical, network = (found[f"replication_{what}_bytes_per_second"] for what in ("logical", "network"))
    return f"{found['replication_lag_seconds']} s behind{left}, {speed(logical)} ({speed(network)} on the network)"


def _disk(disk: Row) -> str:
    reads, writes = count(disk["read_iops"]), count(disk["write_iops"])
    return f"{reads} read/s, {writes} write/s; in all {_total(disk['totals']['read'])} read, {_total(disk['totals']['write'])} written"


def _total(kind: Row) -> str:
    return f"{kind['operations']:,} ({show_size(kind['bytes'])})"


def top_cells(row: Row) -> list[str]:
    return [
        row["name"],
        count(row["read_iops"]),
        count(row["write_iops"]),
        speed(row["read_bytes_per_second"]),
        speed(row["write_bytes_per_second"]),
        microseconds(row["latency_us_mean"]),
        microseconds(row["read_latency_us_p99"]),
        microseconds(row["write_latency_us_p99"]),
        decimal(row["queue_depth"]),
        show_size(row["changed_bytes_day"]),
    ]


def headline(found: Row) -> str:
    """The time, and the sum of what goes on; or since when nothing is known."""
    away = found.get("away_since")
    if away is not None:
        return f"{time.strftime('%H:%M:%S', time.localtime(away))}  blockdevd does not answer; this goes on when it is back"
    clock = time.strftime("%H:%M:%S", time.localtime(found["time"]))
    if not found["engine_running"]:
        return f"{clock}  the engine does not answer"
    speeds = f"{speed(found['read_bytes_per_second'])} read, {speed(found['write_bytes_per_second'])} written"
    return f"{clock}  {count(iops(found))} requests/s, {speeds}"


def _number(value: float | None) -> float:
    return value or 0.0


def iops(row: Row) -> float:
    return sum(_number(row[f"{kind}_iops"]) for kind in ("read", "write", "flush"))


def count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


def decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def speed(value: float | None) -> str:
    return "-" if value is None else f"{show_size(int(value))}/s"


def microseconds(value: float | None) -> str:
    """740 us, 1.2 ms, 3.4 s."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.0f} us"
    return f"{value / 1000:.1f} ms" if value < 1_000_000 else f"{value / 1_000_000:.1f} s"


def _latency(found: Row, kind: str) -> str:
    mean, p99 = found[f"{kind}_latency_us_mean"], found[f"{kind}_latency_us_p99"]
    return "-" if mean is None else f"{microseconds(mean)} (p99 {microseconds(p99)})"
