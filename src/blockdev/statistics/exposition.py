"""What Prometheus scrapes: text of the exposition format 0.0.4 (docs/statistics.md names the metrics).

The few metrics of the pool and of this process are prometheus_client's to write.  Those of VMs and disks are written here, from the
same columns of numbers as everything else: prometheus_client takes 0.6 to 1.2 s for the 60,000 lines of 1,000 VMs (measured), this a
tenth of it.  Labels are bounded: a VM's UUID, its disks, and words of fixed lists; names are in an info metric only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from blockdev.constants import BLOCK_BYTES
from blockdev.engine.statistics import CAUSES as WAIT_CAUSES
from blockdev.engine.statistics import KINDS as ENGINE_KINDS
from blockdev.statistics import counters
from blockdev.statistics.counters import COARSE_NS, COUNT, place, plain
from blockdev.statistics.figures import GAUGE_OF, KINDS
from blockdev.statistics.looks import Known
from blockdev.statistics.totals import FlowKey, Whole

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = {
    "appended": "blocks_appended",
    "deduplicated": "blocks_deduplicated",
    "unchanged": "blocks_unchanged",
    "zero": "blocks_zero",
}
LEVELS = ("ok", "warning", "critical")
_BOUNDS = [*(repr(bound / 1e9) for bound in COARSE_NS), "+Inf"]
Values = Iterable[float | int]


class PoolFacts(NamedTuple):
    """What the engine says of itself and its pool."""

    version: str
    engine: Mapping[str, Any] | None  # its status; None: it does not answer
    schedule_failures: Mapping[tuple[str, str], int]  # of the latest runs, by VM's UUID and schedule; those that fail only


def exposition(known: Known, facts: PoolFacts) -> bytes:
    """All of it."""
    registry = CollectorRegistry()
    registry.register(_Pool(known, facts))
    ProcessCollector(registry=registry)
    text = _Text()
    _write_disks(text, known)
    _write_vms(text, known)
    _write_replication(text, known)
    return generate_latest(registry) + text.encoded()


class _Text:
    """Lines of metrics."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def family(self, name: str, kind: str, about: str) -> None:
        self._parts.append(f"# HELP {name} {about}\n# TYPE {name} {kind}\n")

    def lines(self, name: str, labels: Sequence[str], values: Values) -> None:
        self._parts.append("".join([f"{name}{{{one}}} {value}\n" for one, value in zip(labels, values, strict=True)]))

    def encoded(self) -> bytes:
        return "".join(self._parts).encode()


def _write_disks(text: _Text, known: Known) -> None:
    """A row for each disk; and one with the disk "" for what a VM counted on disks that it has no more."""
    labels, rows = [], []
    for object_id, key in known.disks.items():
        labels.append(f'vm="{key.vm}",disk="{key.name}"')
        rows.append(known.totals[object_id])
    sizes = [known.sizes[object_id] for object_id in known.disks]
    in_flight = [known.in_flight.get(object_id, 0) for object_id in known.disks]
    disk_count = len(rows)
    for vm, total in known.gone.items():
        labels.append(f'vm="{vm}",disk=""')
        rows.append(total)
    table: Whole = np.array(rows, np.int64).reshape(len(rows), COUNT)

    def counter(name: str, about: str, label: str, columns: Mapping[str, int], scale: Callable[[Any], Any] = lambda one: one) -> None:
        text.family(name, "counter", about)
        for word, column in columns.items():
            named = [f'{one},{label}="{word}"' for one in labels] if label else labels
            text.lines(name, named, scale(table[:, column]).tolist())

    def seconds(values: Whole) -> Any:
        return values / 1e9

    kinds = {kind: place(kind, "operations") for kind in ENGINE_KINDS}
    counter("blockdev_operations_total", "Requests that guests' clients were answered.", "kind", kinds)
    moving = {kind: place(kind, "bytes") for kind in ENGINE_KINDS if kind != "flush"}
    counter("blockdev_operation_bytes_total", "Bytes of these requests.", "kind", moving)
    latencies = {kind: place(kind, "latency_ns") for kind in ENGINE_KINDS}
    counter("blockdev_operation_seconds_total", "Time from their arrival to their answer, added up.", "kind", latencies, seconds)
    text.family("blockdev_operation_wait_seconds_total", "counter", "Of that time, what was waited, by cause.")
    for cause in WAIT_CAUSES:
        waited = sum((table[:, place(kind, f"{cause}_ns")] for kind in ENGINE_KINDS), np.zeros(len(rows), np.int64))
        text.lines("blockdev_operation_wait_seconds_total", [f'{one},cause="{cause}"' for one in labels], (waited / 1e9).tolist())
    counter("blockdev_failed_operations_total", "Requests that were answered with an error.", "", {"": plain("failed")})
    outcomes = {outcome: plain(name) for outcome, name in OUTCOMES.items()}
    counter("blockdev_written_blocks_total", "Blocks of 4096 bytes that were written, by what became of them.", "outcome", outcomes)
    counter("blockdev_cold_blocks_total", "Blocks that were decompressed to be read.", "", {"": plain("blocks_cold")})
    for name, about, values in (
        ("blockdev_in_flight_operations", "Requests that are being worked on.", in_flight),
        ("blockdev_disk_size_bytes", "Size of the disk as the guest sees it.", sizes),
    ):
        text.family(name, "gauge", about)
        text.lines(name, labels[:disk_count], values)


def _write_vms(text: _Text, known: Known) -> None:
    vms = list(known.names)
    labels = [f'vm="{vm}"' for vm in vms]
    text.family("blockdev_vm_info", "gauge", "The names of VMs, by UUID.")
    text.lines("blockdev_vm_info", [f'{one},name="{known.names[vm]}"' for one, vm in zip(labels, vms, strict=True)], [1] * len(vms))
    totals: Whole = np.array([known.vm_totals[vm] for vm in vms], np.int64).reshape(len(vms), COUNT)
    name = "blockdev_latency_seconds"
    text.family(name, "histogram", "Requests by the time from their arrival to their answer.")
    for index, kind in enumerate(KINDS):
        cumulated = totals[:, counters.coarse(index)].cumsum(axis=1)
        of_kind = [f'{one},kind="{kind}"' for one in labels]
        for column, bound in enumerate(_BOUNDS):
            text.lines(f"{name}_bucket", [f'{one},le="{bound}"' for one in of_kind], cumulated[:, column].tolist())
        text.lines(f"{name}_sum", of_kind, (totals[:, place(kind, "latency_ns")] / 1e9).tolist())
        text.lines(f"{name}_count", of_kind, cumulated[:, -1].tolist())
    for name, about in (
        ("live_bytes", "Data of the VM's disks as the guest sees it."),
        ("snapshots_bytes", "Of the pool, what deleting all its snapshots gives back."),
        ("unique_bytes", "Of the pool, what deleting the VM gives back."),
    ):
        text.family(f"blockdev_vm_{name}", "gauge", about)
        row_of = {vm: row for row, vm in enumerate(known.latest.vms)}
        found = [(one, known.latest.span.gauges[row_of[vm], GAUGE_OF[name]]) for one, vm in zip(labels, vms, strict=True) if vm in row_of]
        measured = [(one, int(value)) for one, value in found if np.isfinite(value)]
        text.lines(f"blockdev_vm_{name}", [one for one, _value in measured], [value for _one, value in measured])


def _write_replication(text: _Text, known: Known) -> None:
    def write(name: str, kind: str, about: str, values: Mapping[FlowKey, int | None]) -> None:
        there = {key: value for key, value in values.items() if value is not None}
        text.family(name, kind, about)
        text.lines(name, [f'vm="{key.vm}",way="{key.way}",direction="{key.direction}"' for key in there], there.values())

    now = known.replicating
    moved = known.moved
    write(
        *("blockdev_replication_logical_bytes_total", "counter", "Bytes of changed blocks that were dealt with."),
        {key: one.logical for key, one in moved.items()},
    )
    write(
        *("blockdev_replication_network_bytes_total", "counter", "Bytes on the wire for them, both ways."),
        {key: one.network for key, one in moved.items()},
    )
    write(
        *("blockdev_replication_remaining_bytes", "gauge", "Bytes of changed blocks that are to be dealt with still."),
        {key: one.remaining_bytes for key, one in now.items()},
    )
    write(
        *("blockdev_replication_lag_seconds", "gauge", "Age of the oldest snapshot that is not at the other end; received: of the newest here."),
        {key: one.lag_seconds for key, one in now.items()},
    )
    write(
        *("blockdev_replication_rpo_seconds", "gauge", "What the lag is to stay below, where that was said."),
        {key: one.rpo_seconds for key, one in now.items()},
    )


class _Pool(Collector):
    """What there is one of."""

    def __init__(self, known: Known, facts: PoolFacts) -> None:
        self._known, self._facts = known, facts

    def collect(self) -> Iterable[Metric]:
        facts, engine = self._facts, self._facts.engine
        yield InfoMetricFamily("blockdev_build", "What answers.", value={"version": facts.version})
        yield GaugeMetricFamily("blockdev_engine_up", "1: the engine answers.", value=int(engine is not None))
        yield GaugeMetricFamily("blockdev_vms", "How many VMs there are.", value=len(self._known.names))
        looked = "When the engine's counters were read last; everything of VMs is of then."
        yield GaugeMetricFamily("blockdev_statistics_timestamp_seconds", looked, value=self._known.latest.time)
        if engine is not None:
            yield from _of_engine(engine)
        failing = GaugeMetricFamily(
            "blockdev_schedule_failures", "Runs of a schedule that failed, one after the other, until now.", labels=["vm", "schedule"]
        )
        for (vm, schedule), count in facts.schedule_failures.items():
            failing.add_metric([vm, schedule], count)
        yield failing


def _of_engine(engine: Mapping[str, Any]) -> Iterable[Metric]:
    stats = engine["stats"]
    for name, about, value in (
        ("capacity_bytes", "What the pool may hold.", engine["capacity_bytes"]),
        ("used_bytes", "What it holds, compactable bytes among them.", stats["used_bytes"]),
        ("available_bytes", "Room for guests' data.", stats["available_bytes"]),
        ("refuses_writes", "1: a write to the log failed, and writes are refused until the engine is started again.", int(stats["poisoned"])),
        ("snapshots", "Snapshots of disks.", stats["snapshot_count"]),
        ("attachments", "Connections of clients.", engine["attachment_count"]),
    ):
        yield GaugeMetricFamily(f"blockdev_pool_{name}", about, value=value)
    level = GaugeMetricFamily("blockdev_pool_level", "1 for how full the pool is: ok, warning or critical.", labels=["level"])
    for word in LEVELS:
        level.add_metric([word], int(stats["level"] == word))
    yield level
    damaged = "Blocks that did not verify when they were read, since the engine was started."
    yield CounterMetricFamily("blockdev_pool_checksum_errors", damaged, value=stats["checksum_errors"])
    yield CounterMetricFamily("blockdev_pool_appended_bytes", "Written to the log since the engine was started.", value=stats["segment_bytes_added"])


assert BLOCK_BYTES == 4096  # which a text says
