"""What is counted of guests' requests is exactly what they asked for, by whichever way and from however many threads."""

from __future__ import annotations

import os
import random
import threading
import time

import numpy as np
import pytest

from blockdev import Pool, VDisk, _exchange
from blockdev._statistics import COUNTED, ROW_BYTES, DiskStatistics, pack_statistics
from blockdev.engine.statistics import (
    CAUSES,
    CELL,
    KINDS,
    LATENCY_BUCKETS,
    ROW,
    WAITS,
    EngineStatistics,
    bucket_bounds_ns,
    check_statistics,
    quantile_ns,
)
from blockdev.errors import BlockdevError, InvalidArgument, ReadOnly

MIB = 1 << 20
READ, WRITE, FLUSH, DISCARD, ZERO = range(5)
MEDIUM = WAITS.index("medium")


def counted(pool: Pool, bytes_max: int = 8 << 20) -> EngineStatistics:
    rows, cells, waits, count = pack_statistics(pool.statistics(), bytes_max)
    assert count == len(pool.statistics())
    page = {"instance": b"i", "monotonic_ns": 0, "row_bytes": ROW_BYTES, "rows": rows, "cells": cells, "waits": waits}
    return check_statistics([page])


def row_of(pool: Pool, vdisk_id: int) -> np.void:
    rows = counted(pool).rows
    [found] = rows[rows["id"] == vdisk_id]
    return found


def test_layout_is_that_of_the_engine() -> None:
    assert COUNTED
    assert ROW.itemsize == ROW_BYTES == 1104
    assert CELL.itemsize == 16


def test_known_series_gives_exactly_these_counts(pool: Pool) -> None:
    disk = pool.create_vdisk(16 * MIB, "vm/a")
    block = os.urandom(4096)
    disk.write(0, block)  # appended
    disk.write(0, block)  # unchanged
    disk.write(8192, block)  # deduplicated
    disk.write(0, bytes(4096))  # zero, where there was data
    disk.write(1 * MIB, os.urandom(256 << 10), fua=True)  # 64 appended
    for length in (512, 4096, 4608, 1 * MIB):
        disk.read(0, length)
    disk.flush()
    disk.flush()
    disk.discard(8192, 4096)
    disk.write_zeroes(1 * MIB, 64 << 10)
    row = row_of(pool, disk.id)
    kinds = row["kinds"]
    assert kinds["operations"].tolist() == [4, 5, 2, 1, 1]
    assert kinds["bytes"].tolist() == [512 + 4096 + 4608 + MIB, 4 * 4096 + (256 << 10), 0, 4096, 64 << 10]
    # at most 512 << i bytes
    assert {i: int(n) for i, n in enumerate(kinds[READ]["sizes"]) if n} == {0: 1, 3: 1, 4: 1, 11: 1}
    assert {i: int(n) for i, n in enumerate(kinds[WRITE]["sizes"]) if n} == {3: 4, 9: 1}
    assert kinds[FLUSH]["sizes"].sum() == 0
    blocks = [int(row[f"blocks_{name}"]) for name in ("appended", "unchanged", "deduplicated", "zero", "cold")]
    assert blocks == [65, 1, 1, 1, 0]
    assert row["in_flight"] == row["failed"] == 0
    assert kinds[WRITE]["medium_ns"] > 0  # the fdatasync of the one that asked for it; the flushes found nothing to do


def test_cells_of_a_kind_add_up_to_its_operations(pool: Pool) -> None:
    disks = [pool.create_vdisk(4 * MIB) for _ in range(3)]
    for count, disk in enumerate(disks, 1):
        for i in range(100 * count):
            disk.write(i * 4096, os.urandom(4096))
            disk.read(0, 4096)
    found = counted(pool)
    assert (found.latency().sum(axis=2) == found.rows["kinds"]["operations"]).all()
    assert found.rows["kinds"]["operations"][:, WRITE].tolist() == [100, 200, 300]


def test_failed_requests_count_as_failed_only(pool: Pool) -> None:
    disk = pool.create_vdisk(1 * MIB, "vm/a")
    [snapshot] = pool.snapshot([disk])
    with pytest.raises(InvalidArgument):  # turned away before it is a request
        disk.read(1 * MIB, 512)
    assert row_of(pool, disk.id)["failed"] == 0
    pool.delete(disk)
    with pytest.raises(BlockdevError):
        disk.read(0, 512)
    with pytest.raises(BlockdevError):
        disk.flush()
    row = row_of(pool, snapshot.vdisk_id)
    assert row["failed"] == 2
    assert row["in_flight"] == 0
    assert row["kinds"]["operations"].sum() == row["kinds"]["latency_ns"].sum() == 0


def test_threads_lose_no_count(pool: Pool, seed: int) -> None:
    disk = pool.create_vdisk(64 * MIB, "vm/a")
    threads_count, rounds = 16, 300

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        for i in range(rounds):
            offset = (number * rounds + i) % 4096 * 4096
            disk.write(offset, chance.randbytes(4096))
            disk.read(offset, 8192 if offset < 32 * MIB else 4096)
            if i % 100 == 0:
                disk.discard(offset, 4096)

    seen: list[int] = []
    torn: list[int] = []
    in_flight: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = counted(pool)
            torn.append(int((found.latency().sum(axis=2) != found.rows["kinds"]["operations"]).sum()))
            seen.append(int(found.rows["kinds"]["operations"].sum()))
            in_flight.append(int(found.rows["in_flight"].max()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(threads_count)]
    looking = threading.Thread(target=look)
    for thread in (*threads, looking):
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    looking.join()
    row = row_of(pool, disk.id)
    total = threads_count * rounds
    assert row["kinds"]["operations"].tolist() == [total, total, 0, threads_count * 3, 0]
    assert row["kinds"][WRITE]["bytes"] == total * 4096
    assert row["in_flight"] == row["failed"] == 0
    assert seen == sorted(seen) and seen and not any(torn)
    assert max(in_flight) <= threads_count, "no more than can be, whatever begins and ends while it is read"


def test_a_request_that_is_worked_on_is_in_flight(pool: Pool) -> None:
    disk = pool.create_vdisk(16 * MIB, "vm/a")
    data, ended, deadline = os.urandom(16 * MIB), threading.Event(), time.monotonic() + 60

    def work() -> None:
        while not ended.is_set():
            disk.write(0, data)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while row_of(pool, disk.id)["in_flight"] != 1:
            assert time.monotonic() < deadline, "it is never seen"
    finally:
        ended.set()
        thread.join()


def test_latency_sums_agree_with_what_the_caller_measures(pool: Pool) -> None:
    """Of requests that take long, so that the call's own cost is nothing beside them; the best of some, on a busy machine."""
    disk = pool.create_vdisk(16 * MIB, "vm/a")
    agreed = {READ: 0.0, WRITE: 0.0}
    known = [0] * len(KINDS)
    for _ in range(8):
        data = os.urandom(16 * MIB)
        for kind in (WRITE, READ):
            begun = time.perf_counter_ns()
            if kind == WRITE:
                disk.write(0, data)
            else:
                found = disk.read(0, 16 * MIB)
            measured = time.perf_counter_ns() - begun
            assert kind == WRITE or found == data
            of_kind = row_of(pool, disk.id)["kinds"][kind]
            told = int(of_kind["latency_ns"]) - known[kind]
            known[kind] += told
            assert told <= measured
            assert sum(int(of_kind[f"{cause}_ns"]) for cause in CAUSES) <= of_kind["latency_ns"]
            agreed[kind] = max(agreed[kind], told / measured)
    # between the two are the Python call and, in reading, the making of the bytes object
    assert agreed[WRITE] > 0.98 and agreed[READ] > 0.7, agreed


def test_wait_for_the_disks_lock_counts_as_lock(pool: Pool) -> None:
    """A discard holds the lock alone; what a read waits for it is in lock_ns."""
    disk = pool.create_vdisk(1024 * MIB, "vm/a")
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            disk.write(512, os.urandom(1024))
            disk.write_zeroes(0, 512 * MIB)

    others = [threading.Thread(target=disturb) for _ in range(2)]
    for other in others:
        other.start()
    try:
        deadline = time.monotonic() + 60
        while row_of(pool, disk.id)["kinds"][READ]["lock_ns"] == 0 and time.monotonic() < deadline:
            disk.read(0, 4096)
    finally:
        stop.set()
        for other in others:
            other.join()
    kinds = row_of(pool, disk.id)["kinds"]
    assert 0 < kinds[READ]["lock_ns"] <= kinds[READ]["latency_ns"]


def test_histograms_of_waits_are_of_all_requests_and_agree_with_the_sums(pool: Pool) -> None:
    disk = pool.create_vdisk(64 * MIB, "vm/a")
    for number in range(50):
        disk.write(number * MIB, os.urandom(64 << 10), fua=number % 2 == 0)
        disk.read(number * MIB, 4096)
    disk.discard(0, MIB)  # neither it nor what it waits for is in there
    found = counted(pool)
    waits = found.waits()
    assert waits is not None
    [of_disk], [kinds] = waits, found.rows["kinds"]
    assert of_disk.sum(axis=1).tolist() == [100] * len(WAITS)
    assert of_disk[MEDIUM, 0] < 100 - 25 + 1, "what was synced waited for the medium"
    bounds = bucket_bounds_ns()
    for place, causes in enumerate((("lock", "log"), ("medium",), ("compaction",))):
        waited_ns = sum(int(kinds[f"{cause}_ns"][: FLUSH + 1].sum()) for cause in causes)
        counts = of_disk[place, 1:-1]
        short_ns = int(of_disk[place, 0]) * 1024  # the first bucket: not at all, or so long
        assert (counts * bounds[1:-2]).sum() <= waited_ns <= (counts * bounds[2:-1]).sum() + short_ns, causes


def test_waits_of_an_engine_that_does_not_tell_are_not_known(pool: Pool) -> None:
    rows, cells, _waits, _count = pack_statistics([], 1 << 20)
    page = {"instance": b"i", "monotonic_ns": 0, "row_bytes": ROW_BYTES, "rows": rows, "cells": cells}
    assert check_statistics([page]).waits() is None


def test_snapshot_counts_to_its_vdisk_and_clone_to_itself(pool: Pool) -> None:
    disk = pool.create_vdisk(1 * MIB, "vm/a")
    disk.write(0, os.urandom(8192))
    [snapshot] = pool.snapshot([disk])
    clone = pool.clone(snapshot, "copy/a")
    [of_clone] = pool.snapshot([clone])
    snapshot.read(0, 8192)
    clone.read(0, 4096)
    clone.write(0, os.urandom(4096))
    of_clone.read(4096, 4096)
    with pytest.raises((ReadOnly, AttributeError)):
        snapshot.write(0, bytes(512))
    assert row_of(pool, disk.id)["kinds"]["operations"].tolist() == [1, 1, 0, 0, 0]
    assert row_of(pool, clone.id)["kinds"]["operations"].tolist() == [2, 1, 0, 0, 0]
    assert row_of(pool, clone.id)["kinds"]["bytes"].tolist() == [8192, 4096, 0, 0, 0]


def test_row_stays_while_a_snapshot_lives_and_goes_with_the_last_one(pool: Pool) -> None:
    disk = pool.create_vdisk(1 * MIB, "vm/a")
    [snapshot] = pool.snapshot([disk])
    number = disk.id
    pool.delete(disk)
    del disk
    snapshot.read(0, 4096)
    assert row_of(pool, number)["kinds"][READ]["operations"] == 1
    pool.delete(snapshot)
    del snapshot
    assert number not in counted(pool).rows["id"]


def test_counts_begin_anew_with_the_pool_and_snapshots_find_their_vdisk_again(pool_path: str) -> None:
    with Pool.create(pool_path, 256 * MIB) as pool:
        disk = pool.create_vdisk(1 * MIB, "vm/a")
        disk.write(0, os.urandom(4096))
        pool.snapshot([disk], ["vm/a@s"])
        number = disk.id
    with Pool.open(pool_path) as pool:
        assert row_of(pool, number)["kinds"]["operations"].sum() == 0
        pool.find("vm/a@s").read(0, 4096)
        assert row_of(pool, number)["kinds"]["operations"].tolist() == [1, 0, 0, 0, 0]


def test_replication_and_transfers_are_no_guests_requests(pool: Pool) -> None:
    disk, other = pool.create_vdisk(1 * MIB, "vm/a"), pool.create_vdisk(1 * MIB, "vm/b")
    data = os.urandom(64 << 10)
    disk.write(0, data)
    before = row_of(pool, disk.id)["kinds"]["operations"].tolist()
    [snapshot] = pool.snapshot([disk])
    offers, _ = _exchange.changed_blocks(None, snapshot)
    numbers = b"".join(offers[i : i + 8] for i in range(0, len(offers), 24))
    room = bytearray(64 << 10)
    _exchange.fetch_blocks(snapshot, numbers, room)
    _exchange.put_blocks(other, offers, room)
    other.clear(0, 4096)
    buffer = bytearray(8192)
    disk.read_into(0, buffer, transfers=True)
    other.write(0, data[:4096], transfers=True)
    other.flush(transfers=True)
    other.write_zeroes(0, 4096, transfers=True)
    of_disk, of_other = row_of(pool, disk.id), row_of(pool, other.id)
    assert of_disk["kinds"]["operations"].tolist() == before == [0, 1, 0, 0, 0]
    assert of_other["kinds"]["operations"].sum() == 0
    assert [int(of_other[f"blocks_{name}"]) for name in ("appended", "deduplicated", "zero")] == [0, 0, 0]
    assert (of_disk["replicated_read_bytes"], of_disk["transferred_read_bytes"]) == (64 << 10, 8192)
    assert (of_other["replicated_written_bytes"], of_other["transferred_written_bytes"]) == (64 << 10, 4096)


def test_cold_blocks_are_counted_when_they_are_decompressed(pool_path: str) -> None:
    with Pool.create(pool_path, 256 * MIB, segment_bytes=1 * MIB) as pool:
        disk = pool.create_vdisk(16 * MIB, "vm/a")
        disk.write(0, b"".join(number.to_bytes(4, "little") * 1024 for number in range(1, 2049)))
        pool.compact()
        before = int(row_of(pool, disk.id)["blocks_cold"])
        disk.read(0, 1 * MIB)
        assert row_of(pool, disk.id)["blocks_cold"] - before == 256


def test_answers_in_parts_tell_the_same(pool: Pool) -> None:
    disks = [pool.create_vdisk(1 * MIB) for _ in range(20)]
    for disk in disks:
        disk.write(0, os.urandom(4096), fua=True)
    left, pages = pool.statistics(), []
    while left:
        rows, cells, waits, count = pack_statistics(left, 3000)
        assert 0 < count < 20
        pages.append({"instance": b"i", "monotonic_ns": 1, "row_bytes": ROW_BYTES, "rows": rows, "cells": cells, "waits": waits})
        left = left[count:]
    found, whole = check_statistics(pages), counted(pool)
    assert (found.rows["id"] == whole.rows["id"]).all()
    assert (found.rows["kinds"] == whole.rows["kinds"]).all()
    assert (found.cells == whole.cells).all()
    assert found.wait_cells is not None and len(found.wait_cells) and (found.wait_cells == whole.wait_cells).all()


def test_buckets_are_bounded_to_six_percent_and_quantiles_fall_in_them() -> None:
    bounds = bucket_bounds_ns()
    assert len(bounds) == LATENCY_BUCKETS + 1
    assert (bounds[0], bounds[1], bounds[-2]) == (0, 1 << 10, 1 << 36)
    middle = (bounds[1:-2] + bounds[2:-1]) / 2
    assert ((bounds[2:-1] - middle) / bounds[1:-2] <= 0.0625).all()
    counts = np.zeros((2, LATENCY_BUCKETS), dtype=np.uint64)
    counts[1, 50], counts[1, 100] = 99, 1
    assert np.isnan(quantile_ns(counts, 0.5)[0])
    assert bounds[50] <= quantile_ns(counts, 0.5)[1] <= bounds[51]
    assert bounds[100] <= quantile_ns(counts, 0.999)[1] <= bounds[101]


def test_two_thousand_used_disks_are_told_of_quickly(pool: Pool) -> None:
    """The bound is five times what it takes on the slowest machine seen, so that only a change of kind breaks it."""
    disks: list[VDisk] = pool.create_vdisks([(1 * MIB, None, b"")] * 2000)
    for disk in disks:
        disk.write(0, b"x" * 4096)
        disk.read(0, 4096)
    known: list[DiskStatistics] = pool.statistics()
    taken = []
    for _ in range(5):
        begun = time.thread_time()
        rows, _cells, _waits, count = pack_statistics(known, 8 << 20)
        taken.append(time.thread_time() - begun)
    assert count == 2000 and len(rows) == 2000 * ROW_BYTES
    print(f"2,000 disks in {min(taken) * 1000:.1f} ms")
    assert min(taken) < 0.1


def test_kinds_are_named_in_the_order_of_the_rows() -> None:
    assert KINDS[READ] == "read" and KINDS[WRITE] == "write" and KINDS[FLUSH] == "flush"
    assert KINDS[DISCARD] == "discard" and KINDS[ZERO] == "write_zeroes"
