"""Runs workloads against peers in turns and keeps every single run.

Every run has a disk made for it, except that workloads which only read share one per peer and state of the disk for as
long as their group runs.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import Any

import nbd
from bench import fio
from bench.disks import Disk, Sizes, served_disk
from bench.fio import FioFailed
from bench.machine import busy_cpu_seconds
from bench.peers import Peer
from bench.server import ServerFailed, usage_of
from bench.workloads import GIB, Meanwhile, Workload, for_the_bars
from blockdev.errors import BlockdevError

MEANWHILE_PAUSE_SECONDS = 0.1  # between the end of one and the next


@dataclass(frozen=True)
class Plan:
    """How much of everything; `seed` is the root of all others."""

    rounds: int
    runtime_seconds: float
    sizes: Sizes
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
    series: list[tuple[float, float]] | None  # (seconds since the start, IOPS), of a sustained run


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing."""

    workload: str
    peer: str
    round: int
    message: str


Cell = tuple[Workload, type[Peer]]


def cells(
    workloads: Sequence[Workload], peers: Sequence[type[Peer]], only_for_the_bars: bool = False
) -> list[Cell]:
    """Who runs what."""
    wanted = for_the_bars()
    return [
        (workload, peer)
        for workload in workloads
        for peer in peers
        if peer.name in workload.peers and (not only_for_the_bars or (workload.name, peer.name) in wanted)
    ]


def turns(cells: list[Cell], round: int) -> list[Cell]:
    """The order of one round: rotated, and every other round backwards, so that none always follows the same one."""
    step = -1 if round % 2 else 1
    return [cells[(round + step * i) % len(cells)] for i in range(len(cells))]


def run_all(plan: Plan, cells: Sequence[Cell]) -> Iterator[Run | Failure]:
    """Every run of the plan, group after group.

    A failure ends the turns of that peer on that workload, and nothing else.
    """
    for _, members in groupby(cells, key=lambda cell: cell[0].group):
        with _Disks(plan) as disks:
            yield from _run_group(plan, list(members), disks)


class _Disks:
    """The disks of one group: `of` a cell, for one run, or until the group is done if it only reads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self._numbers = count()
        self._shared: dict[tuple[str, str, int, int], Disk] = {}

    def __enter__(self) -> _Disks:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @contextmanager
    def of(self, cell: Cell) -> Iterator[Disk]:
        workload, peer = cell
        if not workload.reads_only:
            with self._made(cell) as disk:
                yield disk
            return
        key = (peer.name, workload.state, workload.snapshots, workload.clones)
        if key not in self._shared:
            self._shared[key] = self._stack.enter_context(self._made(cell))
        yield self._shared[key]

    def _made(self, cell: Cell) -> AbstractContextManager[Disk]:
        # Short: the sockets lie in it, and a socket's path has 107 bytes.
        folder = self._plan.scratch / f"disk-{next(self._numbers)}"
        return served_disk(*cell, self._plan.sizes, folder, self._plan.seed)


def _run_group(plan: Plan, cells: list[Cell], disks: _Disks) -> Iterator[Run | Failure]:
    failed: set[Cell] = set()
    for round in range(plan.rounds):
        for position, cell in enumerate(turns(cells, round)):
            if cell in failed:
                continue
            workload, peer = cell
            try:
                with disks.of(cell) as disk:
                    done: Run | Failure = _run_one(plan, workload, disk, round, position)
            except (BlockdevError, FioFailed, ServerFailed, nbd.Error, subprocess.TimeoutExpired) as error:
                done = Failure(workload.name, peer.name, round, str(error))
                failed.add(cell)
            yield done


@contextmanager
def _meanwhile(peer: Peer, what: Meanwhile) -> Iterator[None]:
    """One after the other while the block runs; raises what the server refused one with."""
    stop = threading.Event()
    do_one = peer.checkpoint if what == "checkpoints" else peer.compact

    def do_them() -> None:
        while not stop.wait(MEANWHILE_PAUSE_SECONDS):
            do_one()

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(do_them)
        try:
            yield
        finally:
            stop.set()
        done.result()


def _measured(plan: Plan, workload: Workload, disk: Disk, seed: int) -> fio.Measurement:
    if workload.state == "cold":
        disk.peer.evict()
    return fio.measure(
        workload, disk.uris, disk.peer.size_bytes, plan.runtime_seconds, seed, plan.scratch / "fio.json"
    )


def _run_one(plan: Plan, workload: Workload, disk: Disk, round: int, position: int) -> Run:
    seed, peer = plan.seed + round, disk.peer
    usage, busy, began = usage_of(peer.process_id), busy_cpu_seconds(), time.monotonic()
    with _meanwhile(peer, workload.meanwhile) if workload.meanwhile else nullcontext():
        done = _measured(plan, workload, disk, seed)
    elapsed = time.monotonic() - began
    usage_after, busy_after = usage_of(peer.process_id), busy_cpu_seconds()
    server_cpu = usage_after.cpu_seconds - usage.cpu_seconds
    other_cpu = max(0.0, busy_after - busy - server_cpu - done.client_cpu_seconds)
    written = usage_after.written_bytes - usage.written_bytes
    gib = done.bytes_done / GIB
    return Run(
        workload=workload.name,
        peer=peer.name,
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
        written_bytes_per_byte=written / done.bytes_written if done.bytes_written else None,
        resident_bytes=usage_after.resident_bytes,
        other_cpu_share=other_cpu / (elapsed * (os.cpu_count() or 1)),
        details=peer.details(),
        series=done.series,
    )
