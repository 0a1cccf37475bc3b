"""What a pool does when the disk below it fails: nothing is lost, nothing leaks, nothing is taken for the end of the log.

Each single call that fails, in each operation and in recovery, is tried in tests/torture/test_faults.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from blockdev import Pool
from tests.engine.failing_medium import run_on_failing_disk

MEBIBYTE = 1 << 20


def test_a_segment_that_cannot_be_begun_leaves_no_file_and_no_descriptor(pool_path: str) -> None:
    script = """
Pool.create(path, 256 << 20, segment_bytes=1 << 20).close()
pool = Pool.open(path, background=False)
before = len(os.listdir("/proc/self/fd"))
fail_calls("write", "segments/", errno.ENOSPC)
for number in range(50):
    try:
        pool.create_vdisk(1 << 20)
    except errors.PoolFull:
        continue
    raise AssertionError("the record was taken")
fail_calls()
assert len(os.listdir("/proc/self/fd")) == before, "descriptors leak"
assert os.listdir(path + "/segments") == ["spare"]
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


KILLED = """
import shutil
def killed(batches=26):
    # two checkpoints, writes behind them, in two segments if not told otherwise
    Pool.create(path, 256 << 20, segment_bytes=1 << 20).close()
    pool = Pool.open(path, background=False)
    vdisk = pool.create_vdisk(4 << 20, "a")
    for number in range(batches):
        vdisk.write(number * 16 * 4096, distinct_blocks(number * 16, 16), fua=True)
        if number in (1, 3):
            pool.checkpoint()
    shutil.copytree(path, path + "-killed")
    pool.close()
    return path + "-killed"
def same(path, batches=26):
    pool = Pool.open(path, background=False)
    assert pool.find("a").read(0, batches * 65536) == distinct_blocks(0, batches * 16), "bytes differ"
    assert pool.scrub() == []
    pool.close()
"""


def test_a_header_that_cannot_be_read_once_is_found_at_the_next_start(pool_path: str) -> None:
    script = """
path = killed(12)
# behind the trailer, the record and the first batch: all slots of the second, with both copies of its header
fail_calls("read", "segments/00000001", skip=3, times=18)
pool = Pool.open(path, background=False)
assert medium.failed_count == 18
vdisk = pool.find("a")
bad = []
for number in range(192):
    try:
        assert vdisk.read(number * 4096, 4096) == distinct_blocks(number, 1), number
    except errors.Corrupt:
        bad.append(number)
assert bad == list(range(16, 32)), bad
fail_calls()
pool.close()
same(path, 12)
"""
    run_on_failing_disk(KILLED + script, pool_path)


def test_a_checkpoint_that_could_not_be_read_for_a_moment_is_not_found_again(pool_path: str) -> None:
    """The older one was taken, and its nodes were written where the newer one has others: then the power went."""
    script = """
import shutil
import blockdev.pool
leaf = 512 * 4096
Pool.create(path, 256 << 20, segment_bytes=4 << 20).close()
pool = Pool.open(path, background=False)
vdisk = pool.create_vdisk(12 * leaf, "a")
expected = {}
number = 0
for leaves in ([0, 1, 2, 3], [0, 1, 2], [3, 0, 1], [5, 6, 1, 7, 2], []):
    for place in leaves:
        number += 1
        vdisk.write(place * leaf, distinct_blocks(number, 1))
        expected[place] = number
    if leaves:
        pool.checkpoint()
    else:
        vdisk.write(9 * leaf, distinct_blocks(100, 1), fua=True)
expected[9] = 100
table = max(name for name in os.listdir(path + "/map") if name.startswith("checkpoint-"))
shutil.copytree(path, path + "-killed")
pool.close()
path += "-killed"
recover = blockdev.pool.recover
def recover_and_fail(*arguments):
    fail_calls("open", table, times=1)
    recovered = recover(*arguments)
    fail_calls("sync", "map/nodes")
    return recovered
blockdev.pool.recover = recover_and_fail
try:
    Pool.open(path, background=False)
    raise AssertionError("the pool was opened")
except errors.MediumError:
    pass
fail_calls()
blockdev.pool.recover = recover
pool = Pool.open(path, background=False)
for place in range(12):
    content = distinct_blocks(expected[place], 1) if place in expected else bytes(4096)
    assert pool.find("a").read(place * leaf, 4096) == content, place
assert pool.scrub() == []
pool.close()
"""
    run_on_failing_disk(script, pool_path)


USE = """
class Blocks:
    def __init__(self):
        self.durable, self.replied = [0] * BLOCKS, [0] * BLOCKS     # contents, by number
        self.tried = [[0] for _ in range(BLOCKS)]
        self.number = 0
    def write(self, vdisk, block):
        self.number += 1
        self.tried[block].append(self.number)
        vdisk.write(block * 4096 * 600, distinct_blocks(self.number, 1))
        self.replied[block] = self.number
    def flushed(self):
        self.durable = list(self.replied)
    def check(self, vdisk, oldest):
        for block in range(BLOCKS):
            content = vdisk.read(block * 4096 * 600, 4096)
            legal = [n for n in self.tried[block] if n >= oldest[block]]
            assert any(content == (distinct_blocks(n, 1) if n else bytes(4096)) for n in legal), block

def load(pool, vdisk, blocks, source):
    for step in range(60):
        kind = source.randrange(12)
        try:
            if kind < 8:
                for _ in range(source.choice([1, 5, 60])):
                    blocks.write(vdisk, source.randrange(BLOCKS))
            elif kind < 10:
                vdisk.flush()
                blocks.flushed()
            elif kind == 10:
                pool.checkpoint()
                pool.tend_memory()
            else:
                pool.snapshot([vdisk])
                blocks.flushed()
        except (errors.MediumError, errors.Poisoned, errors.PoolFull, errors.Corrupt):
            pass
"""


@pytest.mark.parametrize("call", ["open", "write", "sync", "unlink", "read"])
def test_one_call_that_fails_anywhere_in_use_loses_nothing_that_was_durable(
    pool_path: str, call: str, seed: int
) -> None:
    """A block holds its last durable content or a later one, in the pool, after a kill and after a close."""
    script = f"""
import random, shutil
call, seed = {call!r}, {seed}
chosen = random.Random(seed)
BLOCKS = 120
trial, after = path + "-trial", path + "-after"

Pool.create(path, 256 << 20, segment_bytes=1 << 20).close()
skip = 0
failed = 1
while failed:
    for directory in (trial, after):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(path, trial)
    pool = Pool.open(trial, background=False, map_cache_bytes=0)
    vdisk = pool.create_vdisk(BLOCKS * 4096 * 600, "a")
    blocks = Blocks()
    fail_calls(call, "-trial/", chosen.choice([errno.EIO, errno.ENOSPC]), skip, chosen.choice([1, 1, 5]))
    load(pool, vdisk, blocks, random.Random(seed))
    failed = medium.failed_count
    fail_calls()
    skip += chosen.randrange(1, 6)
    shutil.copytree(trial, after)
    blocks.check(vdisk, blocks.replied)
    try:
        pool.close()
    except errors.BlockdevError:
        pass
    for directory in (trial, after):
        pool = Pool.open(directory, background=False)
        blocks.check(pool.find("a"), blocks.durable)
        assert pool.scrub() == [], pool.scrub()
        pool.close()
print(call, "tried", skip)
"""
    print(run_on_failing_disk(USE + script, pool_path).stdout)


def test_what_no_sync_covered_is_written_again_by_recovery(pool_path: str) -> None:
    """A failed sync leaves pages that are clean and not on the disk: the sync of the next start would skip them."""
    script = """
import shutil
Pool.create(path, 256 << 20, segment_bytes=4 << 20).close()
pool = Pool.open(path, background=False)
vdisk = pool.create_vdisk(16 << 20, "a")
vdisk.write(0, distinct_blocks(0, 400), fua=True)
vdisk.write(400 * 4096, distinct_blocks(400, 300))
fail_calls("sync", "segments/")
try:
    vdisk.flush()
    raise AssertionError("the flush was replied to")
except errors.Poisoned:
    pass
fail_calls()
shutil.copytree(path, path + "-killed")
path += "-killed"
before = medium.written_bytes
pool = Pool.open(path, background=False)
again = medium.written_bytes - before
assert 300 * 4096 < again < 500 * 4096, again
assert pool.find("a").read(0, 700 * 4096) == distinct_blocks(0, 700)
"""
    run_on_failing_disk(script, pool_path)


def test_segments_that_were_written_do_not_stay_open_for_ever(pool_path: str) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
Pool.create(path, 256 << 20, segment_bytes=1 << 20).close()
pool = Pool.open(path, background=False)
vdisk = pool.create_vdisk(128 << 20, "a")
for number in range(100):
    vdisk.write(number << 20, distinct_blocks(number * 256, 256), fua=True)
    assert len(os.listdir("/proc/self/fd")) < 50
assert pool.scrub() == []
pool.close()
"""
    run_on_failing_disk(script, pool_path)
