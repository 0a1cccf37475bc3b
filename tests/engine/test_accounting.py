"""What a pool says of its space is what its files hold: counted once more from these, block by block, with sets."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from blockdev.accounting import Group, GroupUsage, SnapshotUsage
from blockdev.constants import BLOCK_BYTES
from tests.engine.content import block_data, distinct_blocks
from tests.engine.recount import Counted, recount

MEBIBYTE = 1 << 20
DISK_BLOCKS = 3000  # over several leaves


def content(source: random.Random, count: int) -> bytes:
    """Blocks of text, of noise, and of what others write, too."""
    parts = []
    while count:
        run = min(count, source.randrange(1, 40))
        kind = source.choice(["text", "noise", "common", "common"])
        if kind == "common":
            parts.append(distinct_blocks(source.randrange(400), run))
        else:
            parts.append(block_data(kind, source.randrange(1 << 30), run * BLOCK_BYTES))
        count -= run
    return b"".join(parts)


def scribble(source: random.Random, disk: Any, times: int) -> None:
    for _ in range(times):
        count = source.randrange(1, 120)
        offset = source.randrange(DISK_BLOCKS - count) * BLOCK_BYTES
        if source.random() < 0.2:
            disk.discard(offset, count * BLOCK_BYTES)
        else:
            disk.write(offset, content(source, count))


def take(pool: Any, vm: Counted, label: str) -> None:
    names = [f"{disk}@{label}" for disk in vm.disks]
    pool.snapshot([pool.find(disk) for disk in vm.disks], names)
    vm.points.append(names)


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_what_the_files_hold(pool_path: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    if seed % 2:  # one range of segments after the other
        monkeypatch.setattr("blockdev.accounting.OWNERS_BYTES_MAX", 4096)
    pool = Pool.create(pool_path, 512 * MEBIBYTE, segment_bytes=MEBIBYTE)
    vms = [Counted([f"{vm}/{disk}" for disk in "ab"[: 1 + (vm == "x")]], []) for vm in "xyz"]
    for vm in vms:
        for name in vm.disks:
            scribble(source, pool.create_vdisk(DISK_BLOCKS * BLOCK_BYTES, name), 12)
    for label in range(5):
        for vm in source.sample(vms, 2):
            take(pool, vm, str(label))
            for name in vm.disks:
                scribble(source, pool.find(name), source.randrange(6))
        if label == 2:
            cloned = next(vm for vm in vms if vm.points)
            made = [pool.clone(pool.find(name), f"c/{name[2]}") for name in cloned.points[0]]
            scribble(source, made[0], 3)
            vms.append(Counted([disk.name for disk in made], []))
            pool.compact()
    for vm in vms:
        if len(vm.points) > 1:
            pool.delete([pool.find(name) for name in vm.points.pop(source.randrange(len(vm.points)))])
    pool.resize(pool.find("y/a"), (DISK_BLOCKS + 4096 * 512) * BLOCK_BYTES)  # one level more
    counted = vms[:-1]  # the clone is in no group
    before = pool.account([vm.group(pool) for vm in counted])
    pool.close()
    expected = recount(pool_path, counted, pool.capacity_bytes)
    with Pool.open(pool_path, background=False) as again:
        found = again.account([vm.group(again) for vm in counted])
        assert found == expected
        assert again.account([]).pool == found.pool
        assert before.groups == found.groups
        assert before.pool.stored_bytes == found.pool.stored_bytes
        assert again.check() == []
        again.compact()
        assert again.account([]).pool.reclaimable_bytes < found.pool.reclaimable_bytes // 4 + MEBIBYTE


def test_what_a_delete_is_said_to_give_back_it_gives_back(pool_path: str) -> None:
    pool = Pool.create(pool_path, 512 * MEBIBYTE, segment_bytes=MEBIBYTE)
    disk = pool.create_vdisk(32 * MEBIBYTE, "a")
    points = []
    for number in range(4):
        disk.write(number * 4 * MEBIBYTE, distinct_blocks(number << 16, 2048))
        points.append(pool.snapshot([disk], [f"a@{number}"]))
    disk.write(0, distinct_blocks(9 << 16, 8192))
    pool.compact()
    groups = [Group([disk.id], [[(points[n][0].id, points[n - 1][0].id if n else None)] for n in range(4)])]
    usage = pool.account(groups).groups[0]
    assert [one.changed_bytes for one in usage.snapshots] == [8 * MEBIBYTE] * 4
    assert usage.data_bytes == 32 * MEBIBYTE and usage.shared_bytes == 0
    before = pool.stats()["segment_bytes"]
    pool.delete(points[0])
    pool.compact()
    freed = before - pool.stats()["segment_bytes"]
    assert usage.snapshots[0].frees_bytes == 4 * MEBIBYTE
    assert freed == pytest.approx(usage.snapshots[0].frees_bytes, rel=0.05)  # with what described it
    pool.delete([one for point in points[1:] for one in point])
    pool.compact()
    freed = before - pool.stats()["segment_bytes"]
    assert freed == pytest.approx(usage.snapshots_stored_bytes, rel=0.05)
    pool.delete(disk)
    pool.compact()
    assert before - pool.stats()["segment_bytes"] == pytest.approx(usage.unique_stored_bytes, rel=0.05)
    pool.close()


def test_what_was_written_a_moment_ago_counts(pool_path: str) -> None:
    """Its batch is still open at the cut."""
    with Pool.create(pool_path, 64 * MEBIBYTE) as pool:
        disk = pool.create_vdisk(MEBIBYTE, "a")
        for count in (100, 256):
            disk.write(0, distinct_blocks(count << 16, count))
            usage = pool.account([Group([disk.id], [])])
            assert usage.pool.logical_bytes == usage.pool.stored_bytes == count * BLOCK_BYTES
            assert usage.groups[0].unique_stored_bytes == count * BLOCK_BYTES


def test_counting_brings_no_nodes_into_memory(pool_path: str) -> None:
    Pool.create(pool_path, 1 << 30).close()
    with Pool.open(pool_path, map_cache_bytes=1 << 18, background=False) as pool:
        disk = pool.create_vdisk(1 << 40, "a")
        for number in range(2000):
            disk.write(number * 512 * BLOCK_BYTES, distinct_blocks(number, 1))
            if number % 100 == 0:
                pool.checkpoint()
                pool.tend_memory()
        [first] = pool.snapshot([disk])
        disk.write(0, distinct_blocks(1 << 20, 1))
        [second] = pool.snapshot([disk])
        pool.checkpoint()
        for _ in range(3):
            pool.tend_memory()
        before = pool.stats()["nodes_faulted"]
        usage = pool.account([Group([disk.id], [[(first.id, None)], [(second.id, first.id)]])])
        assert [one.changed_bytes // BLOCK_BYTES for one in usage.groups[0].snapshots] == [2000, 1]
        assert pool.stats()["nodes_faulted"] == before


def test_a_segment_that_cannot_be_read_is_no_number(pool_path: str) -> None:
    pool = Pool.create(pool_path, 64 * MEBIBYTE, segment_bytes=MEBIBYTE)
    disk = pool.create_vdisk(4 * MEBIBYTE, "a")
    disk.write(0, distinct_blocks(0, 1024))
    pool.compact()
    pool.close()
    segment = max((Path(pool_path) / "segments").glob("*.1"))
    os.truncate(segment, segment.stat().st_size - 4096)
    with Pool.open(pool_path, background=False) as again, pytest.raises(errors.Corrupt, match="scrub"):
        again.account([])


def test_a_close_waits_for_the_count(pool_path: str) -> None:
    pool = Pool.create(pool_path, 1 << 30)
    disk = pool.create_vdisk(1 << 40, "a")
    for number in range(3000):
        disk.write(number * 512 * BLOCK_BYTES, distinct_blocks(number, 1))
    counting = threading.Event()
    outcome: list[Any] = []

    def count() -> None:
        try:
            while True:
                outcome[:] = [pool.account([])]
                counting.set()
        except errors.Gone as gone:
            outcome[:] = [gone]

    counter = threading.Thread(target=count)
    counter.start()
    assert counting.wait(60)
    pool.close()
    Pool.open(pool_path).close()
    counter.join(60)
    assert isinstance(outcome[0], errors.Gone)


def test_an_object_in_two_groups_is_refused(pool_path: str) -> None:
    pool = Pool.create(pool_path, 64 * MEBIBYTE)
    disk = pool.create_vdisk(MEBIBYTE, "a")
    with pytest.raises(errors.InvalidArgument, match="twice"):
        pool.account([Group([disk.id], []), Group([disk.id], [])])
    pool.close()
    with pytest.raises(errors.Gone):
        pool.account([])


def test_what_is_not_there_counts_nothing(pool_path: str) -> None:
    with Pool.create(pool_path, 64 * MEBIBYTE) as pool:
        usage = pool.account([Group([77], [[(78, 79), (80, None)]]), Group([], [])])
        assert usage.groups == [GroupUsage(0, 0, 0, 0, 0, [SnapshotUsage(0, 0)]), GroupUsage(0, 0, 0, 0, 0, [])]
        assert usage.pool.stored_bytes == usage.pool.logical_bytes == 0


def test_it_goes_on_beside_writes_deletes_and_compactions(pool_path: str) -> None:
    """The numbers add up whatever happens meanwhile, and all that is counted is right once it is quiet."""
    pool = Pool.create(pool_path, 1 << 30, segment_bytes=MEBIBYTE)
    disk = pool.create_vdisk(DISK_BLOCKS * BLOCK_BYTES, "a")
    stopping = threading.Event()

    def load() -> None:
        source = random.Random(1)
        taken: list[Any] = []
        while not stopping.is_set():
            scribble(source, disk, 5)
            taken += pool.snapshot([disk])
            if len(taken) > 4:
                pool.delete(taken.pop(source.randrange(4)))
            if source.random() < 0.1:
                pool.compact()

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for _ in range(60):
            snapshots = pool.snapshots()
            usage = pool.account([Group([disk.id], [[(one.id, None)] for one in snapshots])])
            whole = usage.pool
            assert whole.used_bytes == whole.metadata_bytes + whole.stored_bytes + whole.reclaimable_bytes
            assert min(whole) >= 0
            assert whole.logical_bytes <= whole.referenced_bytes and whole.disk_distinct_bytes <= whole.distinct_bytes
            assert usage.groups[0].data_bytes == whole.logical_bytes
    finally:
        stopping.set()
        loader.join()
    counted = Counted(["a"], [])
    found = pool.account([counted.group(pool)])
    pool.close()
    assert found.groups == recount(pool_path, [counted], 1 << 30).groups
