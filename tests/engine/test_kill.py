"""kill -9 of a loaded engine process at random instants: what was reported as durable or kept is there, nothing else is odd.

BLOCKDEV_KILLS=n kills more often, `make torture` 50 times.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockdev import Pool
from tests.engine.crash_load import LANE_BYTES, LANES, VDISK_BYTES, VDISKS, lane_place, steps
from tests.engine.model import BLOCK, ZERO_BLOCK, Content, settle

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BLOCKDEV_KILLS", "20"))
ROUNDS_PER_POOL = 10
SLOWNESS_MAX = 10  # a slow machine is given so many times the kills until there was load


@dataclass
class Told:
    """What a killed process had reported."""

    ready: bool = False
    survived: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(LANES), 0))
    kept: int = 0  # reports of that
    snapshots: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    clones: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def hear(self, line: str) -> None:
        match line.split(" "):
            case ["R"]:
                self.ready = True
            case ["F" | "K" as how, lane, count]:
                self.survived[int(lane)] = int(count)
                self.kept += how == "K"
            case ["S", name, before, after]:
                self.snapshots[name] = (
                    [int(n) for n in before.split(",")],
                    [int(n) for n in after.split(",")],
                )
            case ["C", name, snapshot]:
                self.clones[name] = snapshot
            case ["D", name]:
                self.deleted.add(name)
            case _:
                raise AssertionError(f"unknown report {line!r}")


def run_and_kill(path: str, seed: int, chosen: random.Random) -> Told:
    """Start the load, kill it at a random instant, sometimes while it still opens the pool."""
    command = [sys.executable, "-m", "tests.engine.crash_load", path, str(seed)]
    # unbuffered: what readline() read too far would be lost to communicate()
    child = subprocess.Popen(command, cwd=ROOT, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout and child.stderr
    told = Told()
    if chosen.random() < 0.85:
        line = child.stdout.readline().decode().strip()
        assert line == "R", child.stderr.read().decode()
        told.hear(line)
    time.sleep(chosen.uniform(0, 0.35))  # the instant of the kill, not a synchronisation
    assert child.poll() is None, child.stderr.read().decode()
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=60)
    whole = rest.decode().rpartition("\n")[0]
    for line in whole.split("\n") if whole else []:
        told.hear(line)
    return told


def lane_blocks(disk: Any, lane: int) -> dict[int, bytes]:
    """The blocks of a lane that are not zero, counted from the start of the lane."""
    data = disk.read(lane_place(lane)[1], LANE_BYTES)
    parts = ((at // BLOCK, data[at : at + BLOCK].ljust(BLOCK, b"\0")) for at in range(0, len(data), BLOCK))
    return {number: block for number, block in parts if block != ZERO_BLOCK}


class Oracle:
    """What each lane held when the process started, and what the seed says it did since."""

    def __init__(self) -> None:
        self.lanes = {lane: Content(LANE_BYTES) for lane in range(LANES)}

    def check_heads(self, vdisks: list[Any], seed: int, told: Told) -> None:
        after = {}
        for lane, base in self.lanes.items():
            content = base.copy()
            planned = steps(seed, lane)
            for step, _ in itertools.islice(planned, told.survived[lane]):
                step.apply(content)
            pending = []
            for step, then in planned:
                pending.append(step)
                if then is not None:
                    break
            settled = {lane: content}
            settle(settled, pending, {lane: lane_blocks(vdisks[lane_place(lane)[0]], lane)})
            after[lane] = settled[lane]
        self.lanes_after = after

    def check_snapshot(self, disks: list[Any], seed: int, before: list[int], after: list[int]) -> None:
        for lane, base in self.lanes.items():
            content = base.copy()
            planned = [step for step, _ in itertools.islice(steps(seed, lane), after[lane])]
            for step in planned[: before[lane]]:
                step.apply(content)
            settle(
                {lane: content},
                planned[before[lane] :],
                {lane: lane_blocks(disks[lane_place(lane)[0]], lane)},
            )

    def accept(self) -> None:
        self.lanes = self.lanes_after


def verify(pool: Any, oracle: Oracle, seed: int, told: Told) -> None:
    vdisks = [pool.find(f"vm/{index}") for index in range(VDISKS)]
    oracle.check_heads(vdisks, seed, told)
    existing = {snapshot.name for snapshot in pool.snapshots()}
    assert not {f"{name}/0" for name in told.deleted} & existing, "a deleted snapshot came back"
    for name, (before, after) in told.snapshots.items():
        parts = {f"{name}/{index}" for index in range(VDISKS)}
        if name in told.deleted:
            continue
        # the last delete may have happened without its report; a snapshot goes as a whole or not at all
        if not parts & existing:
            continue
        assert parts <= existing
        disks = [pool.find(f"{name}/{index}") for index in range(VDISKS)]
        oracle.check_snapshot(disks, seed, before, after)
    missing = [n for n in told.snapshots if n not in told.deleted and f"{n}/0" not in existing]
    assert len(missing) <= 1, f"snapshots are gone: {missing}"
    for name, snapshot in told.clones.items():
        clone = pool.find(name)
        if snapshot in existing:
            assert clone.read(0, VDISK_BYTES) == pool.find(snapshot).read(0, VDISK_BYTES)
    assert pool.check() == []


def new_pool(path: str) -> Oracle:
    shutil.rmtree(path, ignore_errors=True)
    with_pool = Pool.create(path, 8 << 30, segment_bytes=1 << 20)
    with_pool.create_vdisks([(VDISK_BYTES, f"vm/{index}", b"") for index in range(VDISKS)])
    with_pool.close()
    return Oracle()


def remove_side_objects(pool: Any) -> None:
    kept = {f"vm/{index}" for index in range(VDISKS)}
    pool.delete([thing for thing in (*pool.vdisks(), *pool.snapshots()) if thing.name not in kept])


def is_load(steps_survived: int, kept: int, snapshots: int) -> bool:
    return steps_survived > KILLS and kept > KILLS and snapshots > KILLS // 2


def test_everything_reported_durable_or_kept_survives_kill_9(pool_path: str, seed: int) -> None:
    chosen = random.Random(seed)
    steps_survived = kept = snapshots = 0
    slowest = 0.0
    for kill in range(KILLS * SLOWNESS_MAX):
        if kill >= KILLS and is_load(steps_survived, kept, snapshots):
            break
        if kill % ROUNDS_PER_POOL == 0:
            oracle = new_pool(pool_path)
        load_seed = chosen.randrange(1 << 30)
        told = run_and_kill(pool_path, load_seed, chosen)
        print(f"kill {kill}: load seed {load_seed}, {sum(told.survived.values())} steps flushed or kept")
        # on a copy, the next process recovers from the same crash again, and from what it then adds
        on_copy = chosen.random() < 0.5
        path = f"{pool_path}-copy" if on_copy else pool_path
        if on_copy:
            shutil.copytree(pool_path, path)
        started = time.monotonic()
        pool = Pool.open(path)
        slowest = max(slowest, time.monotonic() - started)
        verify(pool, oracle, load_seed, told)
        oracle.accept()
        if not on_copy:
            remove_side_objects(pool)
        pool.close()
        if on_copy:
            shutil.rmtree(path)
        steps_survived += sum(told.survived.values())
        kept += told.kept
        snapshots += len(told.snapshots)
    print(f"{kill} kills, {steps_survived} steps flushed or kept, {kept} times kept, {snapshots} snapshots, slowest start {slowest:.3f} s")
    assert is_load(steps_survived, kept, snapshots), "there was hardly any load"
