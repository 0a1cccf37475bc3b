"""Starts stay short: after a long log that no checkpoint is past, with many objects, and with little memory.

make test runs small sizes.  The full ones (12 GiB of disk, ten minutes):
BLOCKDEV_LOG_MIB=10240 BLOCKDEV_VDISKS=1000 BLOCKDEV_COLD=1 .venv/bin/python -m pytest -s tests/engine/test_recovery_scale.py
BLOCKDEV_COLD=1 empties the page cache before each start (as root); the log of 10 GiB is then read at the speed of the disk.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool
from tests.engine.content import distinct_blocks
from tests.engine.long_log import CHUNK_BLOCKS, KINDS, VDISK_BYTES, expected_block
from tests.engine.model import BLOCK

ROOT = Path(__file__).parents[2]
QUICK_LOG_MIB = {"sequential": 256, "random": 128, "commit": 8, "reference": 4}
LOG_MIB = int(os.environ.get("BLOCKDEV_LOG_MIB", "0"))
VDISKS = int(os.environ.get("BLOCKDEV_VDISKS", "100"))
SNAPSHOTS_EACH = 10
COLD = os.environ.get("BLOCKDEV_COLD") == "1"
REPLAY_SECONDS_MAX = 10.0
OBJECTS_SECONDS_MAX = 2.0
SMALL_CACHE_BYTES = 1 << 20  # for about 250 map nodes


def write_and_die(path: str, kind: str, log_mib: int) -> int:
    """A killed pool with that much log behind its checkpoint; returns how many blocks were written."""
    command = [sys.executable, "-m", "tests.engine.long_log", path, kind, str(log_mib)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def timed_open(path: str, **options: Any) -> tuple[Any, float]:
    if COLD:
        drop_caches()
    started = time.monotonic()
    pool = Pool.open(path, background=False, **options)
    return pool, time.monotonic() - started


def check_samples(pool: Any, kind: str, count: int, chosen: random.Random) -> None:
    """The blocks written last are those of the last pass over the disk, which is whole or none."""
    vdisk = pool.find("vm/disk")
    recent = range(max(0, count - VDISK_BYTES // BLOCK), count)
    for number in chosen.sample(recent, min(1000, len(recent))):
        block, data = expected_block(kind, number)
        assert vdisk.read(block * BLOCK, BLOCK) == data, f"the {number}th block, at block {block}"


@pytest.mark.parametrize("kind", KINDS)
def test_long_log_is_replayed_quickly(pool_path: str, kind: str, seed: int) -> None:
    log_mib = LOG_MIB or QUICK_LOG_MIB[kind]
    count = write_and_die(pool_path, kind, log_mib)
    pool, seconds = timed_open(pool_path)
    with pool:
        print(f"{kind}: start after {log_mib} MiB of log, {count} blocks, took {seconds:.2f} s{' cold' * COLD}")
        check_samples(pool, kind, count, random.Random(seed))
    assert count % CHUNK_BLOCKS == 0 and count > 0
    assert seconds < REPLAY_SECONDS_MAX


DIE_AFTER_APPLYING = """
import os, sys
from blockdev import Pool, recovery
class Dying(recovery.Replay):
    def finish(self, _segments_path):
        os._exit(0)
recovery.Replay = Dying
Pool.open(sys.argv[1], background=False, map_cache_bytes=int(sys.argv[2]))
"""


def replay_and_die(path: str) -> None:
    """Recover with little memory for maps, and end when the log is applied and nothing is final yet."""
    command = [sys.executable, "-c", DIE_AFTER_APPLYING, path, str(SMALL_CACHE_BYTES)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)


def test_replay_that_changes_more_nodes_than_memory_holds(pool_path: str, seed: int) -> None:
    """8,000 leaves are changed with room for 250; ended in the middle and begun again, it comes to the same."""
    count = write_and_die(pool_path, "random", 32)
    replay_and_die(pool_path)
    replay_and_die(pool_path)
    pool, _seconds = timed_open(pool_path, map_cache_bytes=SMALL_CACHE_BYTES)
    with pool:
        stats = pool.stats()
        assert count > 8000 and stats["nodes_resident"] < 1500, stats
        check_samples(pool, "random", count, random.Random(seed))
        assert pool.check() == []


def test_nodes_written_by_replay_are_not_mixed_with_a_checkpoint_passed_over(pool_path: str) -> None:
    """A checkpoint table is unreadable at one start and readable at the next: by then its nodes' slots have others."""
    Pool.create(pool_path, 1 << 30, segment_bytes=4 << 20).close()
    pool = Pool.open(pool_path, background=False)
    vdisk = pool.create_vdisk(VDISK_BYTES, "vm/disk")
    leaves = 3000
    for generation in range(2):
        for leaf in range(leaves):
            vdisk.write((leaf * 512 + generation) * BLOCK, distinct_blocks(generation * leaves + leaf, 1))
        pool.checkpoint() if generation == 0 else pool.flush()
    for leaf in range(leaves):
        vdisk.write((leaf * 512 + 2) * BLOCK, distinct_blocks(2 * leaves + leaf, 1))
    pool.checkpoint()
    vdisk.write(0, distinct_blocks(1 << 40, 1), fua=True)
    shutil.copytree(pool_path, pool_path + "-killed")
    pool.close()
    table = max(Path(pool_path + "-killed", "map").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    sound = table.read_bytes()
    table.write_bytes(bytes(len(sound)))
    replay_and_die(pool_path + "-killed")
    table.write_bytes(sound)
    with Pool.open(pool_path + "-killed", background=False) as pool:
        vdisk = pool.find("vm/disk")
        assert vdisk.read(0, BLOCK) == distinct_blocks(1 << 40, 1)
        for leaf in range(1, leaves):
            expected = b"".join(distinct_blocks(generation * leaves + leaf, 1) for generation in range(3))
            assert vdisk.read(leaf * 512 * BLOCK, 3 * BLOCK) == expected, leaf
        assert pool.check() == []


@pytest.fixture(scope="module")
def objects_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pool of many vdisks, each with snapshots and a map of its own, as a kill -9 right afterwards leaves it."""
    path = str(tmp_path_factory.mktemp("objects") / "pool")
    Pool.create(path, 64 << 30).close()
    pool = Pool.open(path, background=False)
    vdisks = [pool.create_vdisk(32 << 30, f"vm-{number}/system", b"{}") for number in range(VDISKS)]
    for number in range(SNAPSHOTS_EACH):
        for index, vdisk in enumerate(vdisks):
            vdisk.write(((number * 977 + index) << 12) % (32 << 30), distinct_blocks(number * VDISKS + index, 1))
            pool.snapshot([vdisk], [f"vm-{index}/system@{number}"], [b'{"at": "2026-11-22T10:00:00Z"}'])
    shutil.copytree(path, path + "-killed")
    pool.close()
    shutil.rmtree(path)
    return path + "-killed"


def test_pool_of_many_objects_opens_quickly_after_kill_and_after_close(objects_path: str) -> None:
    for how in ("kill -9", "close"):
        pool, seconds = timed_open(objects_path)
        print(f"{VDISKS} vdisks, {VDISKS * SNAPSHOTS_EACH} snapshots: start after {how} took {seconds:.2f} s{' cold' * COLD}")
        with pool:
            assert (len(pool.vdisks()), len(pool.snapshots())) == (VDISKS, VDISKS * SNAPSHOTS_EACH)
            place = ((9 * 977 + 5) << 12) % (32 << 30)
            assert pool.find("vm-5/system@9").read(place, BLOCK) == distinct_blocks(9 * VDISKS + 5, 1)
            assert pool.find("vm-5/system@8").read(place, BLOCK) == bytes(BLOCK)
        assert seconds < OBJECTS_SECONDS_MAX
