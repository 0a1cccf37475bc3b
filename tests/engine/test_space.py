"""What takes space and what does not: dedup, zeros, holes, crafted collisions, a full pool."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from blockdev import Pool, errors
from tests.engine.content import colliding_blocks, distinct_blocks
from tests.engine.model import BLOCK, blocks_of

MEBIBYTE = 1 << 20


def bytes_on_disk(path: str) -> int:
    """Bytes in the pool's files, without the room that is reserved for what comes."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def test_identical_data_is_stored_once(pool: Any, pool_path: str) -> None:
    data = distinct_blocks(0, 2048)
    first, second = (pool.create_vdisk(16 * MEBIBYTE) for _ in range(2))
    first.write(0, data)
    pool.checkpoint()
    before = bytes_on_disk(pool_path)
    assert before > len(data)
    second.write(4096, data)
    first.write(8 * MEBIBYTE, data[: 4 * MEBIBYTE])
    pool.flush()
    assert bytes_on_disk(pool_path) - before < len(data) // 50
    assert second.read(4096, len(data)) == data
    assert first.read(8 * MEBIBYTE, 4 * MEBIBYTE) == data[: 4 * MEBIBYTE]


def test_the_same_image_again_adds_less_than_one_percent(pool: Any) -> None:
    def import_image(name: str) -> int:
        vdisk = pool.create_vdisk(64 * MEBIBYTE, name)
        for first in range(0, vdisk.size_bytes // BLOCK, 256):
            vdisk.write(first * BLOCK, distinct_blocks(first, 256))
        pool.flush()
        return pool.stats()["segment_bytes"]

    once = import_image("a")
    twice = import_image("b")
    print(f"{once} bytes in segments after one import, {(twice - once) / once:.3%} more after the second")
    assert twice - once < once / 100


def test_dedup_works_after_close_and_reopen(pool: Any, pool_path: str) -> None:
    data = distinct_blocks(0, 2048)
    pool.create_vdisk(8 * MEBIBYTE, "a").write(0, data)
    pool.close()
    reopened = Pool.open(pool_path)
    try:
        before = bytes_on_disk(pool_path)
        reopened.create_vdisk(8 * MEBIBYTE, "b").write(0, data)
        reopened.flush()
        assert bytes_on_disk(pool_path) - before < len(data) // 50
        assert reopened.find("b").read(0, len(data)) == data
    finally:
        reopened.close()


def test_a_lost_dedup_index_costs_savings_and_no_data(pool: Any, pool_path: str) -> None:
    data = distinct_blocks(0, 256)
    pool.create_vdisk(MEBIBYTE, "a").write(0, data)
    pool.close()
    index = Path(pool_path) / "dedup"
    if index.exists():
        index.write_bytes(os.urandom(index.stat().st_size))
    reopened = Pool.open(pool_path)
    try:
        assert reopened.find("a").read(0, MEBIBYTE) == data
        reopened.create_vdisk(MEBIBYTE, "b").write(0, data)
        assert reopened.find("b").read(0, MEBIBYTE) == data
        assert reopened.check() == []
    finally:
        reopened.close()


def test_zero_blocks_take_no_space_and_are_holes(pool: Any, pool_path: str) -> None:
    vdisk = pool.create_vdisk(256 * MEBIBYTE)
    pool.flush()
    before = bytes_on_disk(pool_path)
    for offset in range(0, vdisk.size_bytes, 16 * MEBIBYTE):
        vdisk.write(offset, bytes(16 * MEBIBYTE))
    pool.flush()
    assert bytes_on_disk(pool_path) - before < MEBIBYTE
    assert [extent.state for extent in vdisk.extents()] == ["hole"]


def test_a_block_overwritten_with_zeros_sector_by_sector_becomes_a_hole(pool: Any) -> None:
    vdisk = pool.create_vdisk(MEBIBYTE)
    vdisk.write(8192, b"\x01" * BLOCK)
    assert [tuple(extent) for extent in vdisk.extents(8192, BLOCK)] == [(8192, BLOCK, "data")]
    for sector in range(8):
        vdisk.write(8192 + sector * 512, bytes(512))
    assert {extent.state for extent in vdisk.extents()} == {"hole"}
    assert vdisk.read(0, MEBIBYTE) == bytes(MEBIBYTE)


def test_crafted_fingerprint_collision_never_gives_another_guests_data(pool: Any, pool_path: str) -> None:
    victim, attacker = pool.create_vdisk(MEBIBYTE, "victim"), pool.create_vdisk(MEBIBYTE, "attacker")
    pairs = [colliding_blocks(seed) for seed in range(64)]
    for secret, crafted in pairs:
        assert secret != crafted and xxhash.xxh3_128_digest(secret) == xxhash.xxh3_128_digest(crafted)
    for number, (secret, crafted) in enumerate(pairs):
        victim.write(number * BLOCK, secret)
        attacker.write(number * BLOCK, crafted)
    for round_number in range(2):
        for number, (secret, crafted) in enumerate(pairs):
            assert victim.read(number * BLOCK, BLOCK) == secret
            assert attacker.read(number * BLOCK, BLOCK) == crafted
        if round_number == 0:  # the other way round, both known by now
            pairs = [(crafted, secret) for secret, crafted in pairs]
            victim.write(0, b"".join(secret for secret, _ in pairs))
            attacker.write(0, b"".join(crafted for _, crafted in pairs))
    assert pool.check() == []


@pytest.fixture
def small_pool(pool_path: str) -> Any:
    opened = Pool.create(pool_path, 48 * MEBIBYTE, segment_bytes=MEBIBYTE)
    yield opened
    opened.close()


def fill(vdisk: Any, first_block: int = 0) -> int:
    """Write distinct blocks until the pool is full; how many were taken."""
    written = 0
    while True:
        try:
            vdisk.write(written * BLOCK, distinct_blocks(first_block + written, 1))
        except errors.PoolFull:
            return written
        written += 1


def assert_filled(vdisk: Any, count: int) -> None:
    for start in range(0, count, 1024):
        blocks = min(1024, count - start)
        assert vdisk.read(start * BLOCK, blocks * BLOCK) == distinct_blocks(start, blocks)


def test_full_pool_refuses_data_and_does_everything_else(small_pool: Any, pool_path: str) -> None:
    vdisk = small_pool.create_vdisk(1 << 30, "vm/root")
    count = fill(vdisk)
    assert 20 * MEBIBYTE < count * BLOCK < 48 * MEBIBYTE
    assert_filled(vdisk, count)
    with pytest.raises(errors.PoolFull) as caught:
        vdisk.write(0, distinct_blocks(1 << 40, 1))
    assert caught.value.errno == 28
    vdisk.flush()
    assert vdisk.read(0, BLOCK) == distinct_blocks(0, 1), "a refused write changed something"
    vdisk.write(512 * MEBIBYTE, distinct_blocks(5, 3))  # known blocks need no space
    (snapshot,) = small_pool.snapshot([vdisk], ["vm/root@full"])
    vdisk.discard(0, 64 * BLOCK)
    vdisk.write_zeroes(64 * BLOCK, BLOCK)
    vdisk.resize(2 << 30)
    vdisk.flush()
    small_pool.checkpoint()
    assert not any(vdisk.read(0, 65 * BLOCK))
    assert_filled(snapshot, count)
    assert bytes_on_disk(pool_path) <= 48 * MEBIBYTE
    small_pool.delete(snapshot)
    small_pool.delete(vdisk)
    assert small_pool.vdisks() == [] and small_pool.check() == []


def test_full_pool_closes_and_opens_again(small_pool: Any, pool_path: str) -> None:
    vdisk = small_pool.create_vdisk(1 << 30, "vm/root")
    count = fill(vdisk)
    small_pool.close()
    reopened = Pool.open(pool_path)
    try:
        vdisk = reopened.find("vm/root")
        assert_filled(vdisk, count)
        with pytest.raises(errors.PoolFull):
            for number in range(1024):
                vdisk.write((count + number) * BLOCK, distinct_blocks((1 << 40) + number, 1))
        assert reopened.check() == []
    finally:
        reopened.close()


def test_full_pool_stays_within_its_capacity_through_discards_and_snapshots(
    small_pool: Any, pool_path: str
) -> None:
    """The reserve is finite: after thousands of small changes they are refused too, or stay within the capacity."""
    vdisk = small_pool.create_vdisk(1 << 30, "vm/root")
    count = fill(vdisk)
    left = {number: distinct_blocks(number, 1) for number in range(count)}
    for number in range(0, count, 2):
        vdisk.discard(number * BLOCK, BLOCK)
        del left[number]
        if number % 64 == 0:
            vdisk.flush()
    small_pool.checkpoint()
    assert blocks_of(vdisk) == left
    assert bytes_on_disk(pool_path) <= 48 * MEBIBYTE


def test_large_write_that_does_not_fit_leaves_whole_blocks(small_pool: Any) -> None:
    vdisk = small_pool.create_vdisk(1 << 30)
    data = distinct_blocks(0, 16384)  # 64 MiB into 48
    with pytest.raises(errors.PoolFull):
        vdisk.write(0, data)
    for number, block in blocks_of(vdisk).items():
        assert block == data[number * BLOCK : (number + 1) * BLOCK]


@pytest.mark.parametrize("kept, found_min", [(1.0, 0.999), (0.25, 0.97), (0.1, 0.9)])
def test_a_small_index_still_finds_most_of_an_image(pool_path: str, kept: float, found_min: float) -> None:
    """Images are written in runs: one block of a run that the index holds leads to the others."""
    blocks = 64 << 8
    Pool.create(pool_path, 1 << 30, segment_bytes=4 * MEBIBYTE).close()
    index_bytes = int(kept * 1.1 * blocks * 32)  # an entry takes 32 bytes when there is room
    with Pool.open(pool_path, background=False, dedup_bytes=index_bytes) as pool:
        for name in ("a", "b"):
            image = pool.create_vdisk(blocks * BLOCK, name)
            for first in range(0, blocks, 64):
                image.write(first * BLOCK, distinct_blocks(first, 64))
        stats = pool.stats()
        found = stats["blocks_deduplicated"] / blocks
        print(f"index of {kept:.0%}: {found:.1%} found, {stats['blocks_found_behind']} behind another")
        assert found > found_min


def test_a_start_after_a_kill_learns_again_what_is_there(pool_path: str) -> None:
    """The saved index is of the last clean close; the rest is read from the segments, in the background."""
    data = distinct_blocks(0, 2048)
    Pool.create(pool_path, 1 << 30, segment_bytes=MEBIBYTE).close()
    pool = Pool.open(pool_path, background=False)
    pool.create_vdisk(8 * MEBIBYTE, "a").write(0, data)
    pool.checkpoint()
    pool.create_vdisk(MEBIBYTE, "b").write(0, distinct_blocks(5000, 8), fua=True)
    killed = f"{pool_path}-killed"
    shutil.copytree(pool_path, killed)
    pool.close()
    with Pool.open(killed) as again:
        deadline = time.monotonic() + 120
        while again.stats()["dedup_entries"] < 2048 and time.monotonic() < deadline:
            time.sleep(0.1)
        before = again.stats()["segment_bytes"]
        again.create_vdisk(8 * MEBIBYTE, "c").write(0, data)
        again.flush()
        assert again.stats()["segment_bytes"] - before < len(data) // 50
