"""The answers about statistics: columns, not rows (docs/statistics.md says what each one is)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, create_model

from blockdev.api.statistics_views import DISK_COLUMNS
from blockdev.statistics import figures

UNITS = "; `_us`: microseconds, `_bytes`: bytes, `_seconds`: seconds, `_iops`: requests a second"
_WHERE = "docs/statistics.md" + UNITS
_LISTS: dict[str, Any] = {name: (list[float | None], Field(description=_WHERE)) for name in figures.COLUMNS}
_VALUES: dict[str, Any] = {name: (float | None, Field(description=_WHERE)) for name in figures.COLUMNS}


class GraphHead(BaseModel):
    """Whose graph it is."""

    vm: str | None = Field(description="null: all VMs together")
    uuid: str | None
    since: int = Field(description="seconds since 1970, as all times here")
    until: int
    step_seconds: int
    t: list[int] = Field(description="when each step began")


GraphView = create_model("GraphView", __base__=GraphHead, **_LISTS)


class Now(BaseModel):
    """When the last look at the engine was."""

    time: int
    seconds: float = Field(description="over how long the rates are; 0: they are not known")
    engine_running: bool


VMRates = create_model(
    "VMRates",
    name=(list[str], ...),
    uuid=(list[str], ...),
    **_LISTS,
    in_flight=(list[int], ...),
    changed_bytes_day=(list[int], Field(description="written to the pool within the last 24 hours")),
)
PoolRates = create_model("PoolRates", **_VALUES, in_flight=(int, ...), changed_bytes_day=(int, ...))


class AllNow(Now):
    """What goes on, of all VMs by name and of all together."""

    vms: VMRates  # type: ignore[valid-type]
    pool: PoolRates  # type: ignore[valid-type]


class KindTotals(BaseModel):
    """Of one kind of requests, since the VM or disk was first seen."""

    operations: int
    bytes: int
    latency_us: int = Field(description="of all of them together")


class Totals(BaseModel):
    """They never go backwards, whoever was restarted."""

    read: KindTotals
    write: KindTotals
    flush: KindTotals
    discard: KindTotals
    write_zeroes: KindTotals
    failed: int
    appended_bytes: int = Field(description="written to the pool: neither zeros nor there already")
    dedup_blocks: int = Field(description="of 4 KiB, that were there already")
    zero_blocks: int
    cold_blocks: int = Field(description="that were decompressed to be read")


DiskRates = create_model(
    "DiskRates",
    disk=(str, ...),
    in_flight=(int, ...),
    **{name: _VALUES[name] for name in DISK_COLUMNS},
    totals=(Totals, ...),
)


class Sizes(BaseModel):
    """Requests by size, since the engine was started."""

    size_bytes_max: list[int | None] = Field(description="of each count; null: larger")
    read: list[int]
    write: list[int]


class Latencies(BaseModel):
    """Requests by latency, since the engine was started."""

    us_max: list[float | None] = Field(description="of each count; null: longer")
    read: list[int]
    write: list[int]
    flush: list[int]


_VM_NOW: dict[str, Any] = {
    **_VALUES,
    "in_flight": (int, ...),
    "changed_bytes_day": (int, ...),
    "totals": (Totals, ...),
    "disks": (list[DiskRates], ...),  # type: ignore[valid-type]
    "request_sizes": (Sizes, ...),
    "latency": (Latencies, ...),
}
VMNow = create_model("VMNow", __base__=Now, vm=(str, ...), uuid=(str, ...), **_VM_NOW)
