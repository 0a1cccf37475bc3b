"""What snapshots, clones and diffs cost, counted in map nodes."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from blockdev import Pool
from blockdev.types import Extent
from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
HEIGHT_MAX = 4


def copied_by(pool: Any, act: Any) -> int:
    before = pool.stats()["nodes_copied"]
    act()
    return pool.stats()["nodes_copied"] - before


def test_first_write_after_a_snapshot_copies_no_more_than_its_path(pool: Any, seed: int) -> None:
    vdisk = pool.create_vdisk(1 << 40)
    chosen = random.Random(seed)
    places = [chosen.randrange((1 << 40) // BLOCK) * BLOCK for _ in range(64)]
    for number, place in enumerate(places):
        vdisk.write(place, distinct_blocks(number, 1))
    for number in range(50):
        (snapshot,) = pool.snapshot([vdisk])
        place = places[number]
        first = copied_by(
            pool, lambda place=place, n=number: vdisk.write(place, distinct_blocks(1000 + n, 1))
        )
        assert 1 <= first <= HEIGHT_MAX, f"{first} nodes copied by one write"
        again = copied_by(
            pool, lambda place=place, n=number: vdisk.write(place, distinct_blocks(2000 + n, 1))
        )
        assert again == 0, "the path was already this epoch's"
        assert snapshot.read(place, BLOCK) == distinct_blocks(number, 1)


def test_snapshot_and_clone_copy_no_nodes(pool: Any) -> None:
    vdisk = pool.create_vdisk(1 << 40)
    for number in range(200):
        vdisk.write(number * 16 * MEBIBYTE, distinct_blocks(number, 1))
    taken: list[Any] = []
    assert copied_by(pool, lambda: taken.extend(pool.snapshot([vdisk]))) == 0
    assert copied_by(pool, lambda: pool.clone(taken[0])) == 0
    assert copied_by(pool, lambda: pool.restore([(vdisk, taken[0])])) == 0


def test_clone_and_origin_diverge_and_share_nothing_they_wrote(pool: Any) -> None:
    vdisk = pool.create_vdisk(MEBIBYTE)
    vdisk.write(0, distinct_blocks(0, 256))
    (snapshot,) = pool.snapshot([vdisk])
    clones = pool.clone_many([(snapshot, f"c{n}", b"") for n in range(10)])
    for number, clone in enumerate(clones):
        clone.write(number * BLOCK, distinct_blocks(5000 + number, 1))
    vdisk.write(20 * BLOCK, distinct_blocks(6000, 1))
    base = distinct_blocks(0, 256)
    for number, clone in enumerate(clones):
        mine = distinct_blocks(5000 + number, 1)
        assert clone.read(0, MEBIBYTE) == base[: number * BLOCK] + mine + base[(number + 1) * BLOCK :]
    assert snapshot.read(0, MEBIBYTE) == base


def visited_by_diff(pool: Any, older: Any, newer: Any) -> tuple[int, list[Any]]:
    before = pool.stats()["nodes_visited"]
    extents = pool.diff(older, newer)
    return pool.stats()["nodes_visited"] - before, extents


def test_diff_costs_what_changed_and_not_what_is_there(pool: Any) -> None:
    vdisk = pool.create_vdisk(1 << 40)
    for number in range(2000):  # 2,000 leaves
        vdisk.write(number * 2 * MEBIBYTE, distinct_blocks(number, 1))
    (first,) = pool.snapshot([vdisk])
    (same,) = pool.snapshot([vdisk])
    visited, extents = visited_by_diff(pool, first, same)
    assert extents == [] and visited <= 2
    for number in (3, 777, 1999):
        vdisk.write(number * 2 * MEBIBYTE + 8 * BLOCK, distinct_blocks(9000 + number, 2))
    (second,) = pool.snapshot([vdisk])
    visited, extents = visited_by_diff(pool, first, second)
    places = [number * 2 * MEBIBYTE + 8 * BLOCK for number in (3, 777, 1999)]
    assert [tuple(extent) for extent in extents] == [(place, 2 * BLOCK, "data") for place in places]
    assert visited <= 3 * 2 * HEIGHT_MAX
    whole, extents = visited_by_diff(pool, None, second)
    assert whole >= 2000 and sum(extent.length for extent in extents) == (2000 + 6) * BLOCK


def test_diff_reports_discards_as_holes(pool: Any) -> None:
    vdisk = pool.create_vdisk(1 << 30)
    vdisk.write(0, distinct_blocks(0, 1024))
    (first,) = pool.snapshot([vdisk])
    vdisk.discard(64 * BLOCK, 128 * BLOCK)
    vdisk.write_zeroes(512 * BLOCK, BLOCK)
    (second,) = pool.snapshot([vdisk])
    found = [tuple(extent) for extent in pool.diff(first, second)]
    assert found == [(64 * BLOCK, 128 * BLOCK, "hole"), (512 * BLOCK, BLOCK, "hole")]
    back = [tuple(extent) for extent in pool.diff(second, first)]
    assert back == [(64 * BLOCK, 128 * BLOCK, "data"), (512 * BLOCK, BLOCK, "data")]


def test_diff_across_a_resize(pool: Any) -> None:
    vdisk = pool.create_vdisk(8 * MEBIBYTE + 512)
    vdisk.write(8 * MEBIBYTE, b"\x01" * 512)
    (small,) = pool.snapshot([vdisk])
    vdisk.resize(3 << 40)
    vdisk.write(2 << 40, distinct_blocks(1, 1))
    (large,) = pool.snapshot([vdisk])
    vdisk.resize(4 * MEBIBYTE)
    (shrunk,) = pool.snapshot([vdisk])
    assert [tuple(e) for e in pool.diff(small, large)] == [(2 << 40, BLOCK, "data")]
    assert pool.diff(large, shrunk) == []
    assert [tuple(e) for e in pool.diff(shrunk, small)] == [(8 * MEBIBYTE, 512, "data")]
    assert small.size_bytes == 8 * MEBIBYTE + 512 and large.size_bytes == 3 << 40


def random_reads(vdisk: Any, places: list[int]) -> float:
    buffer = bytearray(BLOCK)
    started = time.thread_time()
    for place in places:
        vdisk.read_into(place, buffer)
    return time.thread_time() - started


def test_reads_at_200_snapshots_deep_run_at_the_speed_of_none(pool: Any, seed: int) -> None:
    """In turns, the fastest of each, in CPU time.  Chains would make this many times slower; a fifth is left to noise."""
    chosen = random.Random(seed)
    size = 256 * MEBIBYTE
    plain, deep = pool.create_vdisk(size), pool.create_vdisk(size)
    for offset in range(0, size, 4 * MEBIBYTE):
        plain.write(offset, distinct_blocks(offset // BLOCK, 1024))
        deep.write(offset, distinct_blocks(offset // BLOCK, 1024))
    for number in range(200):
        pool.snapshot([deep])
        for vdisk in (plain, deep):
            for turn in range(20):
                place = chosen.randrange(size // BLOCK) * BLOCK
                vdisk.write(place, distinct_blocks(1 << 20 | number << 6 | turn, 1))
    pool.checkpoint()
    times: dict[int, list[float]] = {plain.id: [], deep.id: []}
    for _ in range(15):
        places = [chosen.randrange(size // BLOCK) * BLOCK for _ in range(5000)]
        for vdisk in (plain, deep):
            times[vdisk.id].append(random_reads(vdisk, places))
    ratio = min(times[plain.id]) / min(times[deep.id])
    print(f"random 4 KiB reads: {5000 / min(times[plain.id]):.0f}/s without snapshots, x {ratio:.2f} below 200")
    assert ratio > 0.8


def test_what_changed_is_told_in_steps_whatever_the_size_of_the_maps(pool: Pool) -> None:
    """More map nodes than one walk looks at."""
    vdisk = pool.create_vdisk(64 << 30, "wide")
    for number in range(17_000):
        vdisk.write(number << 21, number.to_bytes(4, "little") * 1024 if number % 3 else b"x" * 4096)
    [older] = pool.snapshot([vdisk])
    vdisk.discard(0, 1 << 34)
    [newer] = pool.snapshot([vdisk])
    found = pool.diff(None, older)
    assert [extent.offset >> 21 for extent in found] == list(range(17_000))
    assert pool.count_changes(None, older) == (17_000 * 4096, 17_000)
    gone = pool.diff(older, newer)
    assert [tuple(extent) for extent in gone] == [(offset << 21, 4096, "hole") for offset in range(1 << 13)]
    assert pool.count_changes(newer, older) == ((1 << 13) * 4096, 1 << 13)


def test_neighbouring_extents_are_one_wherever_a_page_ends(pool: Pool) -> None:
    vdisk = pool.create_vdisk((1 << 20) + 512, "disk")
    for block in (0, 1, 2, 5, 6, 9, 256):
        vdisk.write(block * 4096, bytes([block % 255 + 1]) * (512 if block == 256 else 4096))
    [newer] = pool.snapshot([vdisk])
    whole = [(0, 12288), (20480, 8192), (36864, 4096), (1 << 20, 512)]
    for count in range(1, 6):
        found, rest = [], 0
        while rest is not None:
            extents, rest = pool.changes(None, newer, rest, count)
            assert 0 < len(extents) <= count
            found += [(extent.offset, extent.length) for extent in extents]
        assert found == whole
    assert pool.changes(None, newer, 4096, 1)[0] == [Extent(4096, 8192, "data")]
    assert pool.count_changes(None, newer) == (12288 + 8192 + 4096 + 512, 4)


def test_a_comparison_ends_when_its_vdisk_is_made_smaller_meanwhile(pool: Pool) -> None:
    vdisk = pool.create_vdisk(4096, "live")
    stopped = threading.Event()
    began = 0

    def compare() -> None:
        nonlocal began
        while not stopped.is_set():
            began += 1
            vdisk.count_changed(None)

    thread = threading.Thread(target=compare, daemon=True)
    thread.start()
    for _ in range(200):
        pool.resize(vdisk, 64 << 20)
        pool.resize(vdisk, 4096)
    stopped.set()
    thread.join(120)
    assert not thread.is_alive(), f"comparison {began} goes round for ever"
