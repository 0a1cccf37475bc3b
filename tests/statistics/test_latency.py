"""What a look finds in the engine's histograms, a part of the disks at a time, is what all of them at once would say."""

from __future__ import annotations

import tracemalloc

import numpy as np

from blockdev.engine.statistics import CELL, KINDS, LATENCY_BUCKETS, ROW, WAITS, EngineStatistics
from blockdev.statistics.figures import KINDS as SHOWN
from blockdev.statistics.latency import AT_ONCE, Latency, Whole

DISKS = 2 * AT_ONCE + 7
CELLS_OF_A_DISK = 40
MANY_DISKS, LOOK_BYTES_MAX = 2000, 16 << 20  # all their histograms in full are 20 MB, and a look has several of each


def random_cells(generator: np.random.Generator, disks: int, kinds: int) -> np.ndarray:
    places = np.stack([generator.choice(kinds * LATENCY_BUCKETS, CELLS_OF_A_DISK, replace=False) for _ in range(disks)])
    cells = np.zeros(places.size, CELL)
    cells["row"] = np.repeat(np.arange(disks), CELLS_OF_A_DISK)
    cells["kind"], cells["bucket"] = np.divmod(places.ravel(), LATENCY_BUCKETS)
    cells["count"] = generator.integers(1, 1 << 40, places.size)
    return cells


def random_answer(seed: int, disks: int) -> EngineStatistics:
    """Of disks with the ids 1, 2, ..."""
    generator = np.random.default_rng(seed)
    rows = np.zeros(disks, ROW)
    rows["id"] = np.arange(1, disks + 1)
    rows["kinds"]["operations"] = generator.integers(0, 1 << 40, (disks, len(KINDS)))
    return EngineStatistics(b"i", 0, rows, random_cells(generator, disks, len(KINDS)), random_cells(generator, disks, len(WAITS)))


def in_full(answer: EngineStatistics) -> Whole:
    waits = answer.waits()
    assert waits is not None
    return np.concatenate((answer.latency()[:, : len(SHOWN)], waits), axis=1)


def look(latency: Latency, answer: EngineStatistics, rows: list[int], restarted: bool = False) -> tuple[Whole, Whole]:
    """Of these rows: counted and moved."""
    ids = [row + 1 for row in rows]
    parts = list(latency.since(answer, rows, ids, restarted))
    latency.keep(answer, rows, ids)
    assert [part.places.start for part in parts] == list(range(0, len(rows), AT_ONCE))
    return np.concatenate([part.counted for part in parts]), np.concatenate([part.moved for part in parts])


def test_parts_of_a_look_say_what_all_of_it_does(seed: int) -> None:
    latency, first, second = Latency(), random_answer(seed, DISKS), random_answer(seed + 1, DISKS + 3)
    rows = list(range(1, DISKS))  # the disk of row 0 is nobody's
    counted, moved = look(latency, first, rows)
    assert (counted == in_full(first)[rows]).all() and not moved.any(), "what came before we did is not known to be new"
    rows = [0, *range(2, DISKS + 3)]  # one was met by nobody, one went, three came
    counted, moved = look(latency, second, rows)
    assert (counted == in_full(second)[rows]).all()
    wanted = in_full(second)
    wanted[1:DISKS] -= in_full(first)[1:]
    assert (moved == np.maximum(wanted, 0)[rows]).all() and moved.any()
    assert (latency.of(DISKS) == in_full(second)[DISKS - 1, : len(SHOWN)]).all()


def test_all_that_another_engine_counted_is_new(seed: int) -> None:
    latency, first, second = Latency(), random_answer(seed, DISKS), random_answer(seed + 1, DISKS)
    rows = list(range(DISKS))
    look(latency, first, rows)
    counted, moved = look(latency, second, rows, restarted=True)
    assert (moved == counted).all() and (counted == in_full(second)).all()


def test_a_look_at_many_disks_takes_little_memory(seed: int) -> None:
    latency, rows, ids = Latency(), list(range(MANY_DISKS)), list(range(1, MANY_DISKS + 1))
    answers = [random_answer(seed, MANY_DISKS), random_answer(seed + 1, MANY_DISKS)]
    tracemalloc.start()
    try:
        for answer in answers:
            for part in latency.since(answer, rows, ids, False):
                assert part.counted.any()
            latency.keep(answer, rows, ids)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak >> 20} MiB")
    assert peak < LOOK_BYTES_MAX
