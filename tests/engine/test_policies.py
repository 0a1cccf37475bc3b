"""Policies: what is said of compression and dedup, for a pool and for one disk, is kept and done."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import Any

import pytest

from blockdev import Pool, errors, superblock
from blockdev.accounting import Group
from blockdev.policies import (
    AS_POOL,
    DiskPolicy,
    PoolPolicy,
    decode_disk_policy,
    encode_disk_policy,
    is_disk_code,
)
from blockdev.runner import Pace
from tests.engine.content import block_data, distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
NEVER = DiskPolicy(compression="off")


@pytest.fixture
def small(pool_path: str) -> Any:
    """A pool of small segments without background work."""
    Pool.create(pool_path, 512 * MEBIBYTE, segment_bytes=MEBIBYTE).close()
    pool = Pool.open(pool_path, background=False, dedup_bytes=1 << 20)
    yield pool
    pool.close()


def text(seed: int, size_bytes: int) -> bytes:
    """Distinct blocks that compress well."""
    unit = block_data("text", seed, BLOCK - 16)
    blocks = size_bytes // BLOCK
    return b"".join(seed.to_bytes(8, "little") + number.to_bytes(8, "little") + unit for number in range(blocks))


def stored_bytes(pool: Any) -> int:
    found: int = pool.stats()["segment_bytes"]
    return found


def test_every_disk_policy_has_a_code() -> None:
    for compression in (None, "cold", "inline", "off"):
        for dedup in (None, "on", "off"):
            policy = DiskPolicy(compression, dedup)  # type: ignore[arg-type]
            code = encode_disk_policy(policy)
            assert is_disk_code(code) and decode_disk_policy(code) == policy
    assert encode_disk_policy(AS_POOL) == 0
    assert not any(is_disk_code(code) for code in (12, 16, 255, 1 << 31))


def test_a_pools_policy_is_kept(pool_path: str) -> None:
    pool = Pool.create(pool_path, 64 * MEBIBYTE)
    assert pool.policy == PoolPolicy("cold", 3, "on", 0)
    wanted = PoolPolicy("inline", 9, "off", 50 << 20)
    pool.set_policy(wanted)
    pool.checkpoint()  # which writes the other superblock
    shutil.copytree(pool_path, pool_path + ".cut")
    pool.close()
    for path in (pool_path, pool_path + ".cut"):
        with Pool.open(path) as again:
            assert again.policy == wanted


def test_a_pool_of_an_older_build_has_the_usual_policy() -> None:
    block = superblock.Superblock(bytes(16), 1, 1, 100, 1, 16384, 1 << 30, 1)
    content = bytearray(superblock.encode(block))
    content[84:88] = bytes(4)
    content[8:16] = superblock.xxhash.xxh3_64_intdigest(bytes(content[16:])).to_bytes(8, "little")
    assert superblock.decode(bytes(content)).policy == PoolPolicy()


def test_disk_policies_survive_replay_checkpoint_and_close(small: Any, pool_path: str) -> None:
    a, b, c = small.create_vdisks([(MEBIBYTE, name, b"") for name in "abc"])
    small.set_disk_policies([(a, NEVER), (b, DiskPolicy("inline", "off"))])
    [snapshot] = small.snapshot([a], ["a@1"])
    clone = small.clone(snapshot, "d")
    assert (a.policy, b.policy, c.policy, clone.policy) == (NEVER, ("inline", "off"), AS_POOL, AS_POOL)
    shutil.copytree(pool_path, pool_path + ".replayed")
    small.set_disk_policies([(b, AS_POOL)])
    small.checkpoint()
    shutil.copytree(pool_path, pool_path + ".checkpointed")
    for suffix, of_b in ((".replayed", ("inline", "off")), (".checkpointed", AS_POOL)):
        with Pool.open(pool_path + suffix, background=False) as again:
            assert again.find("a").policy == NEVER
            assert again.find("b").policy == of_b
            assert again.find("c").policy == again.find("d").policy == AS_POOL
            assert again.check() == []


@pytest.mark.parametrize(
    "policy",
    [
        PoolPolicy(compression="lots"),  # type: ignore[arg-type]
        PoolPolicy(dedup="maybe"),  # type: ignore[arg-type]
        PoolPolicy(compression_level=0),
        PoolPolicy(compression_level=20),
        PoolPolicy(compaction_rate_bytes=-1),
        PoolPolicy(compaction_rate_bytes=1000),
        PoolPolicy(compression=None),  # type: ignore[arg-type]
        PoolPolicy(dedup=None),  # type: ignore[arg-type]
    ],
)
def test_a_policy_that_cannot_be_is_refused(small: Any, policy: PoolPolicy) -> None:
    with pytest.raises(errors.InvalidArgument):
        small.set_policy(policy)
    assert small.policy == PoolPolicy()


def test_disk_policies_that_cannot_be_are_refused(small: Any) -> None:
    disk = small.create_vdisk(MEBIBYTE, "a")
    [snapshot] = small.snapshot([disk])
    for policies in (
        [(disk, DiskPolicy("zip"))],  # type: ignore[arg-type]
        [(disk, DiskPolicy(None, "yes"))],  # type: ignore[arg-type]
        [(disk, NEVER), (disk, AS_POOL)],
        [(snapshot, NEVER)],
    ):
        with pytest.raises(errors.InvalidArgument):
            small.set_disk_policies(policies)
    small.delete(disk)
    with pytest.raises(errors.NotFound):
        small.set_disk_policies([(disk, NEVER)])


def test_without_dedup_equal_blocks_are_stored_each_time(small: Any) -> None:
    data = distinct_blocks(0, 256)
    disks = small.create_vdisks([(MEBIBYTE, name, b"") for name in "abcd"])
    for disk in disks[:2]:
        disk.write(0, data)
    assert small.stats()["blocks_written"] == 256
    small.set_disk_policies([(disks[2], DiskPolicy(dedup="off"))])
    disks[2].write(0, data)
    assert small.stats()["blocks_written"] == 512
    small.set_policy(PoolPolicy(dedup="off"))
    disks[3].write(0, data)
    assert small.stats()["blocks_written"] == 768
    small.set_disk_policies([(disks[3], DiskPolicy(dedup="on"))])
    disks[3].write(0, data)
    assert small.stats()["blocks_written"] == 768
    assert all(disk.read(0, MEBIBYTE) == data for disk in disks)


def test_what_a_policy_keeps_plain_is_not_compressed(small: Any) -> None:
    plain, packed = small.create_vdisks([(8 * MEBIBYTE, name, b"") for name in "ab"])
    small.set_disk_policies([(plain, NEVER)])
    contents = {disk.name: text(seed, 8 * MEBIBYTE) for seed, disk in enumerate((plain, packed))}
    for disk in (plain, packed):
        disk.write(0, contents[disk.name])
    small.compact()
    assert 8 * MEBIBYTE < stored_bytes(small) < 10 * MEBIBYTE
    # the policy of now holds for what is there already, in both directions
    small.set_disk_policies([(plain, AS_POOL)])
    small.compact()
    assert stored_bytes(small) < 2 * MEBIBYTE
    small.set_policy(PoolPolicy(compression="off"))
    small.compact()
    assert stored_bytes(small) > 16 * MEBIBYTE
    before = small.stats()["segment_bytes_added"]
    assert small.compact().segments_rewritten == 0 and small.stats()["segment_bytes_added"] - before < MEBIBYTE
    assert all(small.find(name).read(0, 8 * MEBIBYTE) == content for name, content in contents.items())
    assert small.scrub() == []


def test_a_snapshot_of_a_plain_disk_is_kept_plain_and_what_both_share(small: Any) -> None:
    disk = small.create_vdisk(4 * MEBIBYTE, "a")
    small.set_disk_policies([(disk, NEVER)])
    disk.write(0, text(1, 4 * MEBIBYTE))
    [snapshot] = small.snapshot([disk], ["a@1"])
    small.clone(snapshot, "b")  # which would have it compressed
    disk.write(0, text(2, 4 * MEBIBYTE))
    small.compact()
    assert stored_bytes(small) > 8 * MEBIBYTE
    small.delete(disk)  # whom the snapshot followed
    small.compact()
    assert stored_bytes(small) < 2 * MEBIBYTE


def test_the_level_is_the_pools(small: Any) -> None:
    disk = small.create_vdisk(8 * MEBIBYTE, "a")
    sizes = {}
    for level in (1, 19):
        small.set_policy(PoolPolicy(compression_level=level))
        disk.write(0, b"".join(block_data("mixed", level * 5000 + i, BLOCK) for i in range(2048)))
        small.compact()
        sizes[level] = stored_bytes(small)
    assert sizes[19] < sizes[1]


def test_inline_compresses_a_segment_soon_after_it_is_full(pool_path: str) -> None:
    Pool.create(pool_path, 1 << 30, segment_bytes=4 * MEBIBYTE).close()
    with Pool.open(pool_path, dedup_bytes=1 << 20) as pool:
        disk = pool.create_vdisk(128 * MEBIBYTE, "a")
        pool.set_disk_policies([(disk, DiskPolicy("inline"))])
        content = text(3, 128 * MEBIBYTE)
        disk.write(0, content)
        until = time.monotonic() + 300
        while stored_bytes(pool) > 32 * MEBIBYTE:
            assert time.monotonic() < until, pool.stats()
            time.sleep(0.1)
        assert disk.read(0, len(content)) == content


def test_two_disks_that_change_places_are_packed_anew(small: Any) -> None:
    """As many blocks become plain as stop to be."""
    a, b = small.create_vdisks([(MEBIBYTE, name, b"") for name in "ab"])
    small.set_disk_policies([(a, NEVER)])
    for seed, disk in enumerate((a, b)):
        disk.write(0, text(seed, 96 * BLOCK))
    small.compact()
    usage = [one.unique_stored_bytes for one in small.account([Group([a.id], []), Group([b.id], [])]).groups]
    assert usage[0] == 96 * BLOCK > 20 * usage[1]
    small.set_disk_policies([(a, AS_POOL), (b, NEVER)])
    assert small.compact().segments_rewritten == 1
    swapped = [one.unique_stored_bytes for one in small.account([Group([a.id], []), Group([b.id], [])]).groups]
    assert swapped[1] == 96 * BLOCK and swapped[0] == pytest.approx(usage[1], abs=200)
    assert small.compact().segments_rewritten == 0


def test_a_lost_checkpoint_is_no_loss_after_a_change_of_policy(small: Any, pool_path: str) -> None:
    disk = small.create_vdisk(MEBIBYTE, "a")
    disk.write(0, text(1, MEBIBYTE))
    small.set_policy(PoolPolicy(dedup="off"))
    small.set_disk_policies([(disk, NEVER)])
    small.flush()
    tables = sorted(os.listdir(f"{pool_path}/map"), key=lambda name: (len(name), name))
    newest = [name for name in tables if name.startswith("checkpoint-")][-1]
    shutil.copytree(pool_path, pool_path + ".cut")
    with open(f"{pool_path}.cut/map/{newest}", "r+b") as table:
        table.write(bytes(64))
    with Pool.open(pool_path + ".cut", background=False) as again:
        assert again.find("a").read(0, MEBIBYTE) == text(1, MEBIBYTE)
        assert (again.policy.dedup, again.find("a").policy) == ("off", NEVER)


def test_a_rate_is_lifted_while_a_round_waits_for_it() -> None:
    told = threading.Event()
    waited = threading.Event()

    def wait(seconds: float) -> bool:
        waited.set()
        return told.wait(seconds)

    pace = Pace(1, wait)
    spender = threading.Thread(target=pace.spend, args=(1 << 30,))  # thirty years
    spender.start()
    assert waited.wait(60)
    pace.hurry()
    spender.join(60)
    assert not spender.is_alive()


def test_both_superblocks_tell_of_policies_once_the_log_has_one(pool: Pool) -> None:
    """A build that does not know the record must not replay what it can of the log."""
    disk = pool.create_vdisk(1 << 20)
    assert not any(block.incompatible & superblock.POLICIES for block in superblock.read_both(pool.path))
    pool.set_disk_policies([(disk, DiskPolicy("off"))])
    told = [block.incompatible & superblock.POLICIES for block in superblock.read_both(pool.path)]
    assert told == [superblock.POLICIES, superblock.POLICIES]
