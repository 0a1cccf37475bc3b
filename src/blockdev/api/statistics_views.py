"""What the routes of statistics answer: documents in the shape of schemas_statistics.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from blockdev.constants import BLOCK_BYTES
from blockdev.engine.statistics import KINDS as ENGINE_KINDS
from blockdev.engine.statistics import LATENCY_BUCKETS, SIZE_BUCKETS, bucket_bounds_ns
from blockdev.statistics import figures
from blockdev.statistics.counters import place, plain
from blockdev.statistics.history import Graph
from blockdev.statistics.looks import Latest
from blockdev.statistics.service import Statistics
from blockdev.statistics.totals import Whole
from blockdev.vmmap.catalog import VMRow

Document = dict[str, Any]
_IO = ("iops", "bytes_per_second", "latency_us_mean", "latency_us_p99")
DISK_COLUMNS = tuple(name for name in figures.COLUMNS if name.endswith(_IO) and not name.startswith("replication"))
SIZES_MAX: list[int | None] = [512 << index for index in range(SIZE_BUCKETS - 1)] + [None]
LATENCIES_US_MAX: list[float | None] = [*(bucket_bounds_ns()[1:LATENCY_BUCKETS] / 1000).tolist(), None]


def graph(found: Graph, vm: VMRow | None) -> Document:
    head = {
        "vm": None if vm is None else vm.name,
        "uuid": None if vm is None else vm.uuid,
        "since": found.since,
        "until": found.until,
        "step_seconds": found.step_seconds,
        "t": found.times.tolist(),
    }
    return head | {name: figures.listed(name, values) for name, values in found.columns.items()}


def all_now(latest: Latest) -> Document:
    shown = {name: figures.listed(name, values) for name, values in figures.columns(latest.span).items()}
    rows = range(1, len(latest.vms))
    order = sorted(rows, key=lambda row: latest.names.get(latest.vms[row], ""))
    changed = np.rint(latest.changed_in_a_day).astype(np.int64).tolist()
    in_flight = latest.in_flight.tolist()
    vms: Document = {
        "name": [latest.names.get(latest.vms[row], "") for row in order],
        "uuid": [latest.vms[row] for row in order],
        **{name: [values[row] for row in order] for name, values in shown.items()},
        "in_flight": [in_flight[row] for row in order],
        "changed_bytes_day": [changed[row] for row in order],
    }
    pool = {name: values[0] for name, values in shown.items()}
    return _head(latest) | {"vms": vms, "pool": pool | {"in_flight": in_flight[0], "changed_bytes_day": changed[0]}}


def vm_now(statistics: Statistics, vm: VMRow) -> Document:
    """Of a VM that the last look has not met yet, nothing is known."""
    latest = statistics.latest()
    row = latest.vms.index(vm.uuid) if vm.uuid in latest.vms else None
    span = figures.unknown(1) if row is None else figures.Span(*(part[row : row + 1] for part in latest.span))
    disks = statistics.disks(vm.uuid)
    sizes = sum((look.sizes for _name, look, _latency in disks), np.zeros((len(ENGINE_KINDS), SIZE_BUCKETS), np.int64))
    latency = sum((latency for _name, _look, latency in disks), np.zeros((len(figures.KINDS), LATENCY_BUCKETS), np.int64))
    return {
        **_head(latest),
        "vm": vm.name,
        "uuid": vm.uuid,
        **_values(span, figures.COLUMNS),
        "in_flight": 0 if row is None else int(latest.in_flight[row]),
        "changed_bytes_day": 0 if row is None else round(float(latest.changed_in_a_day[row])),
        "totals": totals(statistics.total(vm.uuid)),
        "disks": [
            {"disk": name, "in_flight": look.in_flight, **_values(look.span, DISK_COLUMNS), "totals": totals(look.total)}
            for name, look, _latency in disks
        ],
        "request_sizes": {"size_bytes_max": SIZES_MAX, "read": sizes[0].tolist(), "write": sizes[1].tolist()},
        "latency": {
            "us_max": LATENCIES_US_MAX,
            **{kind: latency[index].tolist() for index, kind in enumerate(figures.KINDS)},
        },
    }


def totals(counted: Whole) -> Document:
    found: Document = {
        kind: {
            "operations": int(counted[place(kind, "operations")]),
            "bytes": int(counted[place(kind, "bytes")]),
            "latency_us": int(counted[place(kind, "latency_ns")]) // 1000,
        }
        for kind in ENGINE_KINDS
    }
    return found | {
        "failed": int(counted[plain("failed")]),
        "appended_bytes": int(counted[plain("blocks_appended")]) * BLOCK_BYTES,
        "dedup_blocks": int(counted[plain("blocks_deduplicated")]),
        "zero_blocks": int(counted[plain("blocks_zero")]),
        "cold_blocks": int(counted[plain("blocks_cold")]),
    }


def _head(latest: Latest) -> Document:
    return {"time": int(latest.time), "seconds": round(latest.seconds, 3), "engine_running": latest.engine_running}


def _values(span: figures.Span, wanted: tuple[str, ...]) -> Document:
    """Of a span of one row."""
    found = figures.columns(span)
    return {name: figures.listed(name, found[name])[0] for name in wanted}


