"""What is put in and given out: VMs as they are named now, what others know of them, and what the last look at the engine found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdev.statistics.figures import Floats, Span
from blockdev.statistics.totals import DiskKey, FlowKey, Moved

Whole = NDArray[np.int64]


class Machines(NamedTuple):
    """The VMs that are, and whose disks are whose."""

    names: dict[str, str]  # by UUID
    disks: dict[int, DiskKey]  # by the disk's object id
    sizes: dict[int, int]  # bytes of a disk, by its object id


class Replicating(NamedTuple):
    """One VM over one way."""

    moved: Moved  # since this process began
    remaining_bytes: int | None  # of what is sent
    lag_seconds: int | None
    rpo_seconds: int | None


class Space(NamedTuple):
    """Of one VM, or of all (docs/space.md)."""

    live_bytes: int
    snapshots_bytes: int
    unique_bytes: int


class Sources(NamedTuple):
    """What the service asks; each may raise Unavailable."""

    machines: Callable[[], Machines]
    replication: Callable[[], Mapping[FlowKey, Replicating]]
    space: Callable[[], dict[str, Space]]  # by UUID, and ring_files.POOL; seconds on a large pool


class DiskLook(NamedTuple):
    """One disk in the last look."""

    object_id: int
    in_flight: int
    span: Span  # one row: since the look before
    total: Whole  # counters.COUNT
    sizes: Whole  # (engine kinds, sizes): requests by size since the engine's start


class Latest(NamedTuple):
    """The last look.  Rows: all VMs together, then each."""

    time: float  # seconds since 1970
    seconds: float  # since the look before; 0: that is not known
    engine_running: bool
    vms: list[str]  # UUIDs, ring_files.POOL first
    names: dict[str, str]
    span: Span
    in_flight: Whole
    changed_in_a_day: Floats


class Known(NamedTuple):
    """All that is known at one moment: what exposition.py writes down."""

    latest: Latest
    names: dict[str, str]  # of VMs, by UUID
    disks: dict[int, DiskKey]  # that VMs have, by object id
    sizes: dict[int, int]
    totals: dict[int, Whole]  # of these disks
    in_flight: dict[int, int]
    gone: dict[str, Whole]  # of VMs, what disks counted that they have no more, if any
    vm_totals: dict[str, Whole]
    moved: dict[FlowKey, Moved]
    replicating: dict[FlowKey, Replicating]
