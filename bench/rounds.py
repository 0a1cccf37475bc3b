"""Runs workloads against peers in turns and keeps every single run.

Every run has a disk made for it, except that workloads which only read share one disk per peer and group.  A disk is
filled, and what the page cache still holds of that is written out, before the clock starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bench import fio
from bench.fio import FioFailed
from bench.machine import busy_cpu_seconds
from bench.peers import Peer
from bench.server import ServerFailed, usage_of
from bench.workloads import GIB, Workload
from blockdev.errors import BlockdevError

FILL_SEED_OFFSET = 1_000_000  # so that no write under test repeats the data it overwrites


@dataclass(frozen=True)
class Plan:
    """How much of everything; `seed` is the root of all others."""

    rounds: int
    runtime_seconds: float
    filled_bytes: int
    fresh_bytes: int
    seed: int
    scratch: Path


@dataclass(frozen=True)
class Run:
    """One run of one workload on one peer."""

    workload: str
    peer: str
    round: int
    position: int  # within the round
    seed: int
    iops: float
    megabytes_per_second: float
    latency_us: dict[str, float]
    flush_latency_us: dict[str, float] | None
    bytes_done: int
    server_cpu_seconds_per_gib: float
    client_cpu_seconds_per_gib: float
    written_bytes_per_byte: float | None  # what the server wrote to files for each byte the client wrote
    resident_bytes: int
    other_cpu_share: float  # of all cores, by neither server nor client: noise, and the kernel's writeback
    details: dict[str, Any]  # what the server tells of itself after the run


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing."""

    workload: str
    peer: str
    round: int
    message: str


Cell = tuple[Workload, type[Peer]]


def cells(workloads: Sequence[Workload], peers: Sequence[type[Peer]]) -> list[Cell]:
    """Who runs what; a peer without snapshots has no run after one."""
    return [
        (w, p)
        for w in workloads
        for p in peers
        if (w.state != "snapshot" or p.can_snapshot) and (p.only is None or w.name in p.only)
    ]


def turns(cells: list[Cell], round: int) -> list[Cell]:
    """The order of one round: rotated, and every other round backwards, so that none always follows the same one."""
    step = -1 if round % 2 else 1
    return [cells[(round + step * i) % len(cells)] for i in range(len(cells))]


def run_all(
    plan: Plan,
    workloads: Sequence[Workload],
    peers: Sequence[type[Peer]],
    told: Callable[[Run | Failure], None],
) -> Iterator[Run | Failure]:
    """Every run of the plan, group after group; `told` hears of each when it is done.

    A failure ends the turns of that peer on that workload, and nothing else.
    """
    for _, members in groupby(workloads, key=lambda workload: workload.group):
        yield from _run_group(plan, cells(list(members), peers), told)


def _run_group(
    plan: Plan, cells: list[Cell], told: Callable[[Run | Failure], None]
) -> Iterator[Run | Failure]:
    failed: set[Cell] = set()
    with ExitStack() as shared:
        disks: dict[str, Peer] = {}
        for round in range(plan.rounds):
            for position, cell in enumerate(turns(cells, round)):
                if cell in failed:
                    continue
                workload, peer = cell
                try:
                    done: Run | Failure = _take_turn(plan, cell, round, position, disks, shared)
                except (BlockdevError, FioFailed, ServerFailed) as error:
                    done = Failure(workload.name, peer.name, round, str(error))
                    failed.add(cell)
                told(done)
                yield done


def _take_turn(
    plan: Plan, cell: Cell, round: int, position: int, disks: dict[str, Peer], shared: ExitStack
) -> Run:
    """One run; `disks` and `shared` keep those of the workloads that only read until the group is done."""
    workload, peer = cell
    if not workload.reads_only:
        with served_disk(plan, workload, peer) as disk:
            return _run_one(plan, workload, disk, round, position)
    if peer.name not in disks:
        disks[peer.name] = shared.enter_context(served_disk(plan, workload, peer))
    return _run_one(plan, workload, disks[peer.name], round, position)


def _size_bytes(plan: Plan, workload: Workload) -> int:
    return plan.fresh_bytes if workload.state == "fresh" else plan.filled_bytes


@contextmanager
def served_disk(plan: Plan, workload: Workload, peer: type[Peer]) -> Iterator[Peer]:
    """A disk in the state the workload begins with, and nothing of it waiting to be written."""
    with peer(plan.scratch / peer.name, _size_bytes(plan, workload)) as disk:
        if workload.state != "fresh":
            fio.fill(disk.uri, disk.size_bytes, plan.seed + FILL_SEED_OFFSET, plan.scratch / "fio.json")
        if workload.state == "snapshot":
            disk.snapshot()
        if not disk.keeps_memory_only:
            os.sync()
        yield disk


def _run_one(plan: Plan, workload: Workload, disk: Peer, round: int, position: int) -> Run:
    seed = plan.seed + round
    usage, busy, began = usage_of(disk.process_id), busy_cpu_seconds(), time.monotonic()
    done = fio.measure(
        workload, disk.uri, disk.size_bytes, plan.runtime_seconds, seed, plan.scratch / "fio.json"
    )
    elapsed = time.monotonic() - began
    usage_after, busy_after = usage_of(disk.process_id), busy_cpu_seconds()
    server_cpu = usage_after.cpu_seconds - usage.cpu_seconds
    other_cpu = max(0.0, busy_after - busy - server_cpu - done.client_cpu_seconds)
    written = usage_after.written_bytes - usage.written_bytes
    gib = done.bytes_done / GIB
    return Run(
        workload=workload.name,
        peer=disk.name,
        round=round,
        position=position,
        seed=seed,
        iops=done.iops,
        megabytes_per_second=done.megabytes_per_second,
        latency_us=done.latency_us,
        flush_latency_us=done.flush_latency_us,
        bytes_done=done.bytes_done,
        server_cpu_seconds_per_gib=server_cpu / gib,
        client_cpu_seconds_per_gib=done.client_cpu_seconds / gib,
        written_bytes_per_byte=None if workload.reads_only else written / done.bytes_done,
        resident_bytes=usage_after.resident_bytes,
        other_cpu_share=other_cpu / (elapsed * (os.cpu_count() or 1)),
        details=disk.details(),
    )
