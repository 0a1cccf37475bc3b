"""Pool operations that meet odd arguments, odd moments and odd files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from tests.engine.content import distinct_blocks

MEBIBYTE = 1 << 20


def crashed(pool: Any) -> Any:
    """A pool as a restart after kill -9 finds it now."""
    copy = f"{pool.path}-crashed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(pool.path, copy)
    return Pool.open(copy, background=False)


@pytest.fixture
def quiet(pool_path: str) -> Any:
    """An open pool that does nothing by itself, with a vdisk "a" and its snapshot "a@s"."""
    Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=4 * MEBIBYTE).close()
    pool = Pool.open(pool_path, background=False)
    pool.snapshot([pool.create_vdisk(MEBIBYTE, "a")], ["a@s"])
    yield pool
    pool.close()


def test_one_thing_twice_in_a_delete_is_refused_and_the_log_can_be_replayed(quiet: Any) -> None:
    vdisk = quiet.find("a")
    with pytest.raises(errors.InvalidArgument):
        quiet.delete([vdisk, vdisk])
    quiet.flush()
    after = crashed(quiet)
    assert [thing.name for thing in after.vdisks()] == ["a"]
    after.close()


def test_one_thing_twice_in_a_relabel_is_refused_and_leaves_no_name_behind(quiet: Any) -> None:
    vdisk = quiet.find("a")
    with pytest.raises(errors.InvalidArgument):
        quiet.relabel([(vdisk, "b", b""), (vdisk, "c", b"")])
    assert quiet.find("a") is vdisk
    quiet.create_vdisk(512, "b")


def test_a_closed_pool_takes_no_checkpoint_because_another_engine_may_have_it(quiet: Any) -> None:
    quiet.close()
    other = Pool.open(quiet.path, background=False)
    other.create_vdisk(MEBIBYTE, "b")
    other.checkpoint()
    blocks = [Path(quiet.path, f"superblock-{which}").read_bytes() for which in (0, 1)]
    with pytest.raises(errors.Gone):
        quiet.checkpoint()
    assert [Path(quiet.path, f"superblock-{which}").read_bytes() for which in (0, 1)] == blocks
    other.close()


def test_files_beside_the_checkpoints_are_left_alone(quiet: Any) -> None:
    stray = Path(quiet.path, "map", "checkpoint-1.bak")
    stray.touch()
    for _ in range(3):
        quiet.create_vdisk(512)
        quiet.checkpoint()
    assert stray.exists()


def test_a_saved_index_that_can_neither_be_read_nor_written_costs_nothing_else(pool_path: str) -> None:
    Pool.create(pool_path, 256 * MEBIBYTE).close()
    for name in ("dedup", "dedup.new"):
        Path(pool_path, name).unlink(missing_ok=True)
        Path(pool_path, name).mkdir()
    pool = Pool.open(pool_path)
    pool.create_vdisk(MEBIBYTE, "a").write(0, b"\x01" * 4096)
    pool.load_dedup()
    pool.close()
    reopened = Pool.open(pool_path)
    assert reopened.find("a").read(0, 4096) == b"\x01" * 4096
    reopened.close()


def test_disks_of_different_pools_are_not_compared(quiet: Any, pool_path: str) -> None:
    Pool.create(f"{pool_path}-other", 256 * MEBIBYTE).close()
    other = Pool.open(f"{pool_path}-other", background=False)
    with pytest.raises(errors.InvalidArgument):
        quiet.diff(other.create_vdisk(MEBIBYTE, "a"), quiet.find("a"))
    other.close()


def test_a_segment_that_recovery_removed_is_closed(quiet: Any) -> None:
    quiet.find("a").write(0, b"\x01" * 4096, fua=True)
    copy = f"{quiet.path}-stale"
    shutil.copytree(quiet.path, copy)
    segments = Path(copy, "segments")
    for number in range(2, 22):
        shutil.copy(segments / "00000001.0", segments / f"{number:08x}.0")
    open_files = len(os.listdir("/proc/self/fd"))
    pool = Pool.open(copy, background=False)
    assert len(list(segments.glob("*.0"))) == 1
    assert len(os.listdir("/proc/self/fd")) < open_files + 10
    pool.close()


def test_guests_cannot_use_up_what_a_delete_needs(pool_path: str) -> None:
    pool = Pool.create(pool_path, 16 * MEBIBYTE, segment_bytes=MEBIBYTE)
    vdisk = pool.create_vdisk(1 << 30, "a")
    number = 0
    with pytest.raises(errors.PoolFull):
        while True:
            vdisk.write(number * 4096, distinct_blocks(number, 1))
            number += 1
    with pytest.raises(errors.PoolFull):
        for turn in range(10_000):  # known blocks and holes need no data, but each flush needs a batch
            vdisk.write(turn % 2 * 4096, distinct_blocks(turn % 7, 1), fua=True)
            vdisk.discard(turn % 3 * 4096, 4096)
    pool.delete(pool.snapshot([vdisk], ["a@s"])[0])
    pool.delete(vdisk)
    pool.close()


def test_a_name_that_is_no_text_is_refused(quiet: Any) -> None:
    with pytest.raises(errors.InvalidArgument):
        quiet.create_vdisk(512, "half \ud800")
    with pytest.raises(errors.InvalidArgument):
        quiet.relabel([(quiet.find("a"), "half \ud800", b"")])
