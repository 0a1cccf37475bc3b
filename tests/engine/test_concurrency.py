"""Many threads on one pool: no torn sector, nothing lost, snapshots that hold one instant."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from blockdev import Pool, errors
from tests.engine.content import read_stamps, stamped
from tests.engine.load import JOIN_SECONDS_MAX, Crew, Reader, Writer, assert_last_writes_won
from tests.engine.model import BLOCK, SECTOR

MEBIBYTE = 1 << 20


def write_times(writer: Writer, count: int) -> None:
    for _ in range(count):
        writer.write()


def test_overlapping_writers_leave_whole_sectors_and_the_last_write_of_one_of_them(
    pool: Any, seed: int
) -> None:
    vdisk = pool.create_vdisk(256 * 1024 + 1536)
    writers = [Writer(vdisk, number, seed) for number in range(1, 5)]
    with Crew() as crew:
        for reader in (Reader(vdisk, seed), Reader(vdisk, seed + 1)):
            crew.start(reader.read)
        with Crew() as load:
            for writer in writers:
                load.start(lambda writer=writer: write_times(writer, 2500), repeat=False)
        crew.stop()
    assert_last_writes_won(vdisk, writers)
    assert pool.check() == []


def test_sub_block_writes_to_one_block_lose_no_neighbour(pool: Any) -> None:
    """Eight threads own one sector each of the same few blocks."""
    vdisk = pool.create_vdisk(16 * 4096)

    def write_own(lane: int) -> None:
        for sequence in range(1, 400):
            for block in range(16):
                at = block * 4096 + lane * SECTOR
                vdisk.write(at, bytes([lane + 1, sequence & 255]) * (SECTOR // 2))

    with Crew() as crew:
        for lane in range(8):
            crew.start(lambda lane=lane: write_own(lane), repeat=False)
    data = vdisk.read(0, vdisk.size_bytes)
    for sector in range(len(data) // SECTOR):
        expected = bytes([sector % 8 + 1, 399 & 255]) * (SECTOR // 2)
        assert data[sector * SECTOR : (sector + 1) * SECTOR] == expected, f"sector {sector}"


def test_a_reader_sees_each_replied_write(pool: Any, seed: int) -> None:
    """Read your writes: a range with one writer never shows less than what that writer was told."""
    vdisk = pool.create_vdisk(4 * MEBIBYTE)
    writers = [Writer(vdisk, number, seed, (number - 1) * MEBIBYTE, MEBIBYTE) for number in range(1, 5)]
    chosen = random.Random(seed)
    with Crew() as crew:
        for writer in writers:
            crew.start(lambda writer=writer: write_times(writer, 1500), repeat=False)
        while any(thread.is_alive() for thread in crew.threads):
            writer = chosen.choice(writers)
            if not writer.last_of_sector:
                continue
            sector = chosen.choice(list(writer.last_of_sector.copy()))
            least = writer.last_of_sector[sector]
            ((number, sequence),) = read_stamps(vdisk.read(sector * SECTOR, SECTOR), sector * SECTOR)
            assert number == writer.number and sequence >= least
    assert_last_writes_won(vdisk, writers)


def check_instant(snapshot: Any, content: bytes, before: dict[int, int], after: dict[int, int]) -> None:
    """A snapshot holds all writes replied to before it began, and none submitted after it returned."""
    assert snapshot.read(0, snapshot.size_bytes) == content, "a snapshot changed"
    for number, sequence in set(read_stamps(content, 0)):
        if number:
            assert sequence <= after[number], f"writer {number}: {sequence} was written after the snapshot"


def test_snapshots_under_load_hold_one_instant_and_never_change(pool: Any, seed: int) -> None:
    vdisks = [pool.create_vdisk(MEBIBYTE) for _ in range(2)]
    writers = [Writer(vdisks[number % 2], number, seed) for number in range(1, 5)]
    taken: list[tuple[list[Any], list[bytes], dict[int, int], dict[int, int]]] = []
    with Crew() as crew:
        for writer in writers:
            crew.start(writer.write)
        crew.start(pool.checkpoint)
        for _ in range(60):
            before = {writer.number: writer.replied for writer in writers}
            snapshots = pool.snapshot(vdisks)
            after = {writer.number: writer.submitted for writer in writers}
            taken.append((snapshots, [s.read(0, s.size_bytes) for s in snapshots], before, after))
            assert snapshots[0].lsn == snapshots[1].lsn
    for snapshots, contents, before, after in taken:
        for snapshot, content in zip(snapshots, contents, strict=True):
            check_instant(snapshot, content, before, after)
    for index, vdisk in enumerate(vdisks):
        assert_last_writes_won(vdisk, [writer for writer in writers if writer.number % 2 == index])
    assert pool.check() == []


def test_snapshot_has_every_write_replied_to_before_it(pool: Any, seed: int) -> None:
    vdisk = pool.create_vdisk(4 * MEBIBYTE)
    writers = [Writer(vdisk, number, seed, (number - 1) * MEBIBYTE, MEBIBYTE) for number in range(1, 5)]
    with Crew() as crew:
        for writer in writers:
            crew.start(writer.write)
        for _ in range(40):
            known = [dict(writer.last_of_sector.copy()) for writer in writers]
            (snapshot,) = pool.snapshot([vdisk])
            found = read_stamps(snapshot.read(0, snapshot.size_bytes), 0)
            for writer, least in zip(writers, known, strict=True):
                assert all(found[sector][1] >= sequence for sector, sequence in least.items()), writer.number
            pool.delete(snapshot)


def test_resize_clone_and_delete_under_load(pool: Any, seed: int) -> None:
    """The upper half of the vdisk comes and goes while the lower half is written; clones are made and deleted."""
    vdisk = pool.create_vdisk(2 * MEBIBYTE)
    writers = [Writer(vdisk, number, seed, 0, MEBIBYTE) for number in (1, 2)]
    lock = threading.Lock()

    def resize() -> None:
        vdisk.resize(MEBIBYTE + 512)
        vdisk.resize(2 * MEBIBYTE)
        assert not any(vdisk.read(MEBIBYTE, MEBIBYTE)), "what was cut off came back"
        vdisk.write(2 * MEBIBYTE - 8192, b"\x77" * 8192)

    def clone() -> None:
        (snapshot,) = pool.snapshot([vdisk])
        copy = pool.clone(snapshot)
        read_stamps(copy.read(0, MEBIBYTE), 0)
        copy.write(0, b"\x55" * 65536)
        assert snapshot.read(0, 512) != b"\x55" * 512
        with lock:
            pool.delete([copy, snapshot])

    with Crew() as crew:
        for writer in writers:
            crew.start(lambda writer=writer: write_times(writer, 3000), repeat=False)
        with Crew() as side:
            side.start(resize)
            side.start(clone)
            for thread in crew.threads:
                thread.join(JOIN_SECONDS_MAX)
    vdisk.resize(MEBIBYTE)
    assert_last_writes_won(vdisk, writers)
    assert pool.check() == []


def test_keeps_among_plain_writes_and_flushes_leave_full_batches_and_every_write(pool_path: str, seed: int) -> None:
    """Each thread writes its own blocks; what it wrote is read back from memory and, after a new start, from the log."""
    threads, writes = 6, 150
    pool = Pool.create(pool_path, 1 << 30, segment_bytes=4 << 20)
    vdisk = pool.create_vdisk(threads * writes * BLOCK, "d")

    def data(number: int, index: int) -> bytes:
        return random.Random(f"{seed}/{number}/{index}").randbytes(BLOCK)

    def work(number: int) -> None:
        for index in range(writes):
            offset = (number * writes + index) * BLOCK
            vdisk.write(offset, data(number, index))
            if number % 3 != 1:
                vdisk.keep()
            if number % 3 == 2 and index % 50 == 49:
                vdisk.flush()
            assert vdisk.read(offset, BLOCK) == data(number, index)

    crew = Crew()
    for number in range(threads):
        crew.start(lambda number=number: work(number), repeat=False)
    crew.join()
    stats = pool.stats()
    assert stats["blocks_written"] == threads * writes
    assert stats["batches"] < threads * writes // 8, "a keep ended its batch"
    pool.close()
    again = Pool.open(pool_path)
    for number in range(threads):
        for index in range(writes):
            assert again.find("d").read((number * writes + index) * BLOCK, BLOCK) == data(number, index)
    again.close()


def test_flush_from_many_threads_shares_syncs(pool_path: str, seed: int) -> None:
    """Group commit: flushes that wait together are served by one fdatasync."""
    with_pool = Pool.create(pool_path, 1 << 30)
    try:
        vdisk = with_pool.create_vdisk(16 * MEBIBYTE)
        syncs = with_pool.stats()["syncs"]

        def write_and_flush(lane: int) -> None:
            for sequence in range(100):
                vdisk.write(lane * MEBIBYTE + sequence * 4096, bytes([lane + 1]) * 4096)
                vdisk.flush()

        with Crew() as crew:
            for lane in range(8):
                crew.start(lambda lane=lane: write_and_flush(lane), repeat=False)
        syncs = with_pool.stats()["syncs"] - syncs
        print(f"800 flushes of 8 threads took {syncs} syncs")
        assert 100 <= syncs < 600
    finally:
        with_pool.close()


@pytest.mark.parametrize("snapshots", [500])
def test_lockstep_counters_never_disagree_by_more_than_one(pool: Any, snapshots: int) -> None:
    """One client writes n to A, flushes, writes n to B, flushes: at any instant A is B or B + 1."""
    first, second = pool.create_vdisks([(MEBIBYTE, "vm/a", b""), (MEBIBYTE, "vm/b", b"")])
    counter = 0

    def count_up() -> None:
        nonlocal counter
        counter += 1
        for vdisk in (first, second):
            vdisk.write(4096, counter.to_bytes(8, "little") * 64)
            vdisk.flush()

    seen: list[list[int]] = []
    with Crew() as crew:
        crew.start(count_up)
        while len(seen) < snapshots or seen[-1][0] - seen[0][0] <= snapshots // 10:
            assert len(seen) < 20 * snapshots, f"hardly any load: {seen[0]} to {seen[-1]}"
            taken = pool.snapshot([first, second])
            seen.append([int.from_bytes(snapshot.read(4096, 512)[:8], "little") for snapshot in taken])
    assert all(a - b in (0, 1) for a, b in seen), [pair for pair in seen if pair[0] - pair[1] not in (0, 1)]
    assert [pair[0] for pair in seen] == sorted(pair[0] for pair in seen)


def until_gone(act: Any) -> None:
    """Repeat until the disk is gone; any other error is a failure."""
    while True:
        try:
            act()
        except errors.Gone:
            return


def test_delete_under_load_answers_gone_to_everyone(pool: Any, seed: int) -> None:
    for turn in range(15):
        vdisk = pool.create_vdisk(MEBIBYTE, "vm/root")
        writer, reader = Writer(vdisk, 1, seed + turn), Reader(vdisk, seed)
        (snapshot,) = pool.snapshot([vdisk], ["vm/root@s"])
        with Crew() as crew:
            acts = (
                writer.write,
                reader.read,
                vdisk.flush,
                vdisk.extents,
                lambda s=snapshot: s.read(0, 65536),
            )
            for act in (*acts, lambda v=vdisk: v.discard(4096, 65536)):
                crew.start(lambda act=act: until_gone(act), repeat=False)
            while writer.replied < 50:
                assert all(thread.is_alive() for thread in crew.threads)
            pool.delete([vdisk, snapshot])
    assert pool.check() == []


def test_restore_under_load_leaves_the_snapshot_or_later_writes(pool: Any, seed: int) -> None:
    vdisk = pool.create_vdisk(MEBIBYTE)
    writers = [Writer(vdisk, number, seed) for number in (1, 2)]
    base = stamped(9, 1, 0, MEBIBYTE)
    vdisk.write(0, base)
    (snapshot,) = pool.snapshot([vdisk])
    with Crew() as crew:
        for writer in writers:
            crew.start(writer.write)
        for _ in range(40):
            before = {writer.number: writer.replied for writer in writers} | {9: 0}
            pool.restore([(vdisk, snapshot)])
            found = read_stamps(vdisk.read(0, MEBIBYTE), 0)
            assert all(sequence > before[number] for number, sequence in found), (
                "a write from before the restore is there"
            )
            assert snapshot.read(0, MEBIBYTE) == base
    assert pool.check() == []


def test_close_under_load_ends_every_request(pool_path: str, seed: int) -> None:
    """What was replied to before the close is there after it."""
    opened = Pool.create(pool_path, 1 << 30, segment_bytes=4 * MEBIBYTE)
    for turn in range(8):
        name = f"vm/{turn}"
        vdisk = opened.create_vdisk(MEBIBYTE, name)
        writer = Writer(vdisk, 1, seed + turn)
        with Crew() as crew:
            for act in (writer.write, Reader(vdisk, seed).read, vdisk.flush):
                crew.start(lambda act=act: until_gone(act), repeat=False)
            while writer.replied < 30:
                assert all(thread.is_alive() for thread in crew.threads)
            opened.close()
        opened = Pool.open(pool_path)
        found = read_stamps(opened.find(name).read(0, MEBIBYTE), 0)
        for sector, sequence in writer.last_of_sector.items():
            assert found[sector][1] >= sequence, f"sector {sector}"
    assert opened.check() == []
    opened.close()
