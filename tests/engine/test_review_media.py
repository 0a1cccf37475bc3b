"""What a pool does when the disk below it fails: nothing is lost, nothing leaks, nothing is taken for the end of the log."""

from __future__ import annotations

from pathlib import Path

from blockdev import Pool
from tests.engine.failing_medium import run_on_failing_disk

MEBIBYTE = 1 << 20


def test_a_segment_that_cannot_be_begun_leaves_no_file_and_no_descriptor(pool_path: str) -> None:
    script = """
Pool.create(path, 256 << 20, segment_bytes=1 << 20).close()
pool = Pool.open(path, background=False)
before = len(os.listdir("/proc/self/fd"))
fail_calls("pwrite", "segments/", errno.ENOSPC)
for number in range(50):
    try:
        pool.create_vdisk(1 << 20)
    except errors.PoolFull:
        continue
    raise AssertionError("the record was taken")
fail_calls()
assert len(os.listdir("/proc/self/fd")) == before, "descriptors leak"
assert os.listdir(path + "/segments") == []
vdisk = pool.create_vdisk(1 << 20, "a")
vdisk.write(0, distinct_blocks(2000, 200))
assert vdisk.read(0, 200 * 4096) == distinct_blocks(2000, 200)
pool.close()
"""
    run_on_failing_disk(script, pool_path)
    pool = Pool.open(pool_path)
    assert pool.scrub() == []
    pool.close()


def test_a_segment_name_that_is_taken_is_passed_over(pool_path: str) -> None:
    Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=MEBIBYTE).close()
    pool = Pool.open(pool_path, background=False)
    (Path(pool_path) / "segments" / "00000001.0").mkdir()
    pool.create_vdisk(MEBIBYTE, "a")
    pool.close()
