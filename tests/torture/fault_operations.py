"""What the fault harness asks of a pool, and the pools it begins with."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from blockdev import Pool, _medium, superblock
from blockdev.policies import DiskPolicy
from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK, SECTOR
from tests.torture.oracle import State, Step
from tests.torture.page_cache import PageCache
from tests.torture.trial import Trial

CAPACITY_BYTES = 64 << 20
SEGMENT_BYTES = 1 << 20
LEAF_BYTES = 512 * BLOCK
DISK_BYTES = LEAF_BYTES + (1 << 20)  # two leaves, so a root above them
ODD_BYTES = (1 << 20) + 3 * SECTOR


class Start(NamedTuple):
    """A pool to begin with; `steps` may or may not have survived in it."""

    cache: PageCache
    durable: State
    steps: list[Step]


class Operation(NamedTuple):
    name: str
    start: str  # key of what `starts` returns
    before: Callable[[Trial], None]
    run: Callable[[Trial], None]
    opens: bool = False  # before it there is no open pool: it opens one
    reads: bool = False  # it changes nothing


def make_pool(directory: str) -> Trial:
    """An open pool with two disks, a snapshot they differ from, and a clone."""
    path = f"{directory}/pool"
    Pool.create(path, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
    trial = Trial(path, State())
    trial.open()
    trial.create_vdisk("a", DISK_BYTES)
    trial.create_vdisk("b", ODD_BYTES)
    trial.write("a", 0, distinct_blocks(100, 12))
    trial.write("a", LEAF_BYTES, distinct_blocks(300, 3), fua=True)
    trial.snapshot([("a", "a@1"), ("b", "b@1")])
    trial.write("a", 8 * BLOCK, distinct_blocks(400, 5))
    trial.write("b", 0, distinct_blocks(500, 4))
    trial.write("b", ODD_BYTES - SECTOR, b"tail" * 128)
    trial.clone("a@1", ["c"])
    return trial


def starts(home: str, wanted: set[str]) -> dict[str, Start]:
    """The pools to begin with, made below `home`: those that are wanted."""
    os.mkdir(f"{home}/nothing")
    os.mkdir(f"{home}/closed")
    trial = make_pool(f"{home}/closed")
    trial.close()
    closed = Start(PageCache(f"{home}/closed"), trial.durable, [])
    made = {"nothing": Start(PageCache(f"{home}/nothing"), State(), []), "closed": closed}
    for name, make in (("killed", _killed), ("torn", _torn), ("passed over", _passed_over)):
        if name in wanted:
            made[name] = make(closed, home)
    return made


def _killed(closed: Start, home: str) -> Start:
    """Killed in a flush, with a log to replay, and garbage and a segment behind what was written."""
    cache = closed.cache.copy_to(f"{home}/used")
    _medium.intercept(cache.observe_hook)
    trial = Trial(f"{home}/used/pool", closed.durable.copy())
    trial.open()
    trial.write("a", LEAF_BYTES + 5 * BLOCK, distinct_blocks(700, 4))
    trial.write("a", 0, distinct_blocks(100, 3))  # known blocks
    trial.discard("b", 4 * BLOCK, 8 * BLOCK)
    trial.snapshot([("a", "a@2")])
    trial.checkpoint()
    trial.discard("a", 0, 16 * BLOCK)
    trial.resize("b", ODD_BYTES - 2 * SECTOR)
    trial.write("c", 512 * BLOCK, distinct_blocks(1000, 240), fua=True)  # into the next segment
    trial.delete(["a@1"])
    trial.write("b", 512, distinct_blocks(1100, 3))
    killed = _kill_in_flush(trial, cache, f"{home}/killed")
    _tear_end(Path(f"{home}/killed/pool/segments"))
    return killed


def _torn(closed: Start, home: str) -> Start:
    """The one batch behind the checkpoint has its header, but not its payload: there is nothing to replay."""
    cache = closed.cache.copy_to(f"{home}/used-too")
    _medium.intercept(cache.observe_hook)
    trial = Trial(f"{home}/used-too/pool", closed.durable.copy())
    trial.open()
    trial.write("a", 0, distinct_blocks(1200, 3), fua=True)  # so that no batch is open at the cut
    trial.checkpoint()
    trial.write("b", 0, distinct_blocks(1300, 3))
    killed = _kill_in_flush(trial, cache, f"{home}/torn")
    ((path, ranges),) = killed.cache.dirty.items()
    first, end = ranges[-1]
    with open(f"{home}/torn/{path}", "r+b") as file:
        file.seek(first + BLOCK)
        file.write(bytes(end - first - 2 * BLOCK))
    return killed._replace(cache=PageCache(f"{home}/torn"))


def _kill_in_flush(trial: Trial, cache: PageCache, directory: str) -> Start:
    """A copy of what is there between the writes of a flush and its sync."""
    durable, steps = trial.durable.copy(), list(trial.steps)
    killed: list[PageCache] = []

    def kill_at_sync(operation: str, *call: Any) -> None:
        if operation == "sync" and not killed:
            killed.append(cache.copy_to(directory))
        cache.observe_hook(operation, *call)

    _medium.intercept(kill_at_sync)
    trial.flush("b")
    trial.close()
    _medium.intercept(None)
    return Start(killed[0], durable, steps)


def _tear_end(segments: Path) -> None:
    last = max(path for path in segments.iterdir() if path.stat().st_size > 2 * BLOCK)  # not the spare one
    with last.open("ab") as file:
        file.write(b"1" * 10000)
    behind = last.with_name(f"{int(last.name[:8], 16) + 7:08x}.0")
    behind.write_bytes(last.read_bytes()[: 4 * BLOCK])


def _passed_over(closed: Start, home: str) -> Start:
    """The newest superblock does not verify: the older checkpoint and a longer log are used."""
    cache = closed.cache.copy_to(f"{home}/passed-over")
    newest = max(
        (0, 1), key=lambda which: superblock.decode(bytes(cache.disk[f"pool/superblock-{which}"])).sequence
    )
    path = f"pool/superblock-{newest}"
    cache.disk[path][100:200] = b"\xff" * 100
    Path(f"{home}/passed-over/{path}").write_bytes(cache.disk[path])
    return Start(cache, closed.durable, [])


# --- operations ------------------------------------------------------------------------------------------------------


def opened(trial: Trial) -> None:
    trial.open()


def opened_and_written(trial: Trial) -> None:
    trial.open()
    trial.write("a", 0, distinct_blocks(2000, 3))
    trial.write("b", 3 * BLOCK, distinct_blocks(100, 2))  # known blocks
    trial.discard("c", 0, 4 * BLOCK)


def written_and_checkpointed(trial: Trial) -> None:
    opened_and_written(trial)
    trial.checkpoint()
    trial.write("a", LEAF_BYTES, distinct_blocks(2100, 3))


def opened_with_garbage(trial: Trial) -> None:
    """Two segments, one with live blocks among dead ones, one dead; and nodes that nothing reaches."""
    trial.open()
    for number in range(4):
        trial.write("a", number * 100 * BLOCK, distinct_blocks(5000 + number * 100, 100))
    trial.discard("a", 10 * BLOCK, 300 * BLOCK)
    trial.delete(["c"])
    trial.write("b", 3 * BLOCK, distinct_blocks(100, 2))  # known blocks


def create(trial: Trial) -> None:
    trial.create_pool(CAPACITY_BYTES, SEGMENT_BYTES)


def roll(trial: Trial) -> None:
    for number in range(4):
        trial.write("a", number * 100 * BLOCK, distinct_blocks(3000 + number * 100, 100))
    trial.flush("b")


def roll_flushed(trial: Trial) -> None:
    for number in range(6):
        trial.write("c", number * 50 * BLOCK, distinct_blocks(4000 + number * 50, 50), fua=True)


def flush_by_many(trial: Trial) -> None:
    """They share a sync: when it fails, it has failed for all of them."""
    disk = trial.opened.find("a")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(disk.flush) for _ in range(4)]
    failures = [failure for one in asked if (failure := one.exception()) is not None]
    if len(failures) < len(asked):
        trial.settled()
    if failures:
        raise failures[0]


def checkpoint_twice(trial: Trial) -> None:
    trial.checkpoint()
    trial.write("a", LEAF_BYTES + BLOCK, distinct_blocks(2200, 1))
    trial.checkpoint()


def close_and_open(trial: Trial) -> None:
    if trial.pool is not None:
        trial.close()
    trial.open()


def read_all(trial: Trial) -> None:
    for name, thing in trial.durable.things.items():
        found = trial.opened.find(name).read(0, thing.content.size_bytes)
        assert found == thing.content.read(0, thing.content.size_bytes), f"{name} reads wrong"


def extents_and_differences(trial: Trial) -> None:
    trial.opened.find("a").extents()
    trial.opened.diff(trial.opened.find("a@1"), trial.opened.find("a"))


def check(trial: Trial) -> None:
    trial.look(trial.opened.check)


def scrub(trial: Trial) -> None:
    trial.look(trial.opened.scrub)


OPERATIONS = [
    Operation("create", "nothing", lambda trial: None, create, opens=True),
    Operation("open", "killed", lambda trial: None, Trial.open, opens=True),
    Operation("open_clean", "closed", lambda trial: None, Trial.open, opens=True),
    Operation("open_torn", "torn", lambda trial: None, Trial.open, opens=True),
    Operation("open_passed_over", "passed over", lambda trial: None, Trial.open, opens=True),
    Operation("write", "closed", opened, lambda t: t.write("a", 0, distinct_blocks(2000, 1))),
    Operation("write_several", "closed", opened, lambda t: t.write("a", 0, distinct_blocks(2000, 150))),
    Operation(
        "write_known", "closed", opened_and_written, lambda t: t.write("c", BLOCK, distinct_blocks(2000, 3))
    ),
    Operation(
        "write_unaligned", "closed", opened, lambda t: t.write("a", 7 * SECTOR, distinct_blocks(2000, 2))
    ),
    Operation("flush", "closed", opened_and_written, lambda t: t.flush("a")),
    Operation("flush_by_many", "closed", opened_and_written, flush_by_many),
    Operation("fua", "closed", opened, lambda t: t.write("b", 0, distinct_blocks(2000, 2), fua=True)),
    Operation("create_vdisk", "closed", opened_and_written, lambda t: t.create_vdisk("new", ODD_BYTES)),
    Operation("snapshot", "closed", opened_and_written, lambda t: t.snapshot([("a", "a@2"), ("b", "b@2")])),
    Operation("clone", "closed", opened_and_written, lambda t: t.clone("b@1", ["new"])),
    Operation("clone_many", "closed", opened_and_written, lambda t: t.clone("a@1", ["d", "e", "f"])),
    Operation("delete", "closed", opened_and_written, lambda t: t.delete(["a@1", "b"])),
    Operation("restore", "closed", opened_and_written, lambda t: t.restore("a", "a@1")),
    Operation("relabel", "closed", opened_and_written, lambda t: t.relabel("a", "z")),
    Operation("resize_up", "closed", opened_and_written, lambda t: t.resize("b", DISK_BYTES)),
    Operation("resize_down", "closed", opened_and_written, lambda t: t.resize("a", LEAF_BYTES + 5 * SECTOR)),
    Operation("discard", "closed", opened, lambda t: t.discard("a", SECTOR, LEAF_BYTES + 20 * BLOCK)),
    Operation("checkpoint", "closed", opened_and_written, Trial.checkpoint),
    Operation("checkpoint_twice", "closed", written_and_checkpointed, checkpoint_twice),
    Operation("compact", "closed", opened_with_garbage, Trial.compact),
    Operation("set_capacity", "closed", opened, lambda t: t.opened.set_capacity(2 * CAPACITY_BYTES)),
    Operation("set_policy", "closed", opened, lambda t: t.opened.set_policy(t.opened.policy)),
    Operation("set_disk_policy", "closed", opened_and_written, lambda t: t.set_disk_policy("a", DiskPolicy("off", "off"))),
    Operation("roll", "closed", opened, roll),
    Operation("roll_flushed", "closed", opened, roll_flushed),
    Operation("close", "closed", opened_and_written, Trial.close),
    Operation("reopen", "closed", opened_and_written, close_and_open),
    Operation("read", "closed", opened, read_all, reads=True),
    Operation("extents_and_differences", "closed", opened, extents_and_differences, reads=True),
    Operation("check", "closed", opened, check, reads=True),
    Operation("scrub", "closed", opened, scrub, reads=True),
]
