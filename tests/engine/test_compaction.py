"""Space comes back, and nothing else goes: rounds of mark and compact, whole and step by step."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from blockdev.compaction import Compaction
from blockdev.runner import Cancelled, Pace
from tests.engine.churn import Churn
from tests.engine.content import block_data, distinct_blocks
from tests.engine.format_reader import PoolFiles
from tests.engine.model import BLOCK
from tests.engine.test_space import bytes_on_disk

MEBIBYTE = 1 << 20
SEGMENT = {"segment_bytes": MEBIBYTE}


@pytest.fixture
def small(pool_path: str) -> Any:
    """A pool of small segments without background work."""
    Pool.create(pool_path, 512 * MEBIBYTE, **SEGMENT).close()
    pool = Pool.open(pool_path, background=False, dedup_bytes=1 << 20)
    yield pool
    pool.close()


def steps_of(pool: Any) -> Compaction:
    return Compaction(pool, Pace(None, lambda _seconds: False))


def fill(vdisk: Any, first: int = 0, count: int | None = None) -> bytes:
    """Distinct blocks all over a disk; returns them."""
    data = distinct_blocks(first, count or vdisk.size_bytes // BLOCK)
    vdisk.write(0, data)
    return data


def sound(pool: Any) -> None:
    assert pool.check() == []
    assert pool.scrub() == []


def test_what_is_deleted_comes_back(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(24 * MEBIBYTE, "a")
    fill(vdisk)
    small.snapshot([vdisk], ["a@1"])
    vdisk.write(0, distinct_blocks(1 << 20, 2048))
    small.checkpoint()
    before = bytes_on_disk(pool_path)
    small.delete([vdisk, small.find("a@1")])
    report = small.compact()
    assert report.live_bytes == 0 and report.segments_removed >= 32
    assert small.stats()["segment_bytes"] < MEBIBYTE
    assert small.stats()["map_bytes"] < 1 << 16
    assert bytes_on_disk(pool_path) < MEBIBYTE < 32 * MEBIBYTE < before
    sound(small)


def test_what_stays_reads_the_same_and_dedups_again(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(16 * MEBIBYTE, "a")
    expected = bytearray(fill(vdisk))
    chosen = random.Random(5)
    for number in range(200):
        block, count = chosen.randrange(4000), chosen.randrange(1, 60)
        data = distinct_blocks((1 << 20) + number * 100, count)
        vdisk.write(block * BLOCK, data)
        expected[block * BLOCK : (block + count) * BLOCK] = data
    vdisk.discard(4 * MEBIBYTE, 2 * MEBIBYTE)
    expected[4 * MEBIBYTE : 6 * MEBIBYTE] = bytes(2 * MEBIBYTE)
    small.flush()
    before = small.stats()["segment_bytes"]
    report = small.compact()
    after = small.stats()["segment_bytes"]
    assert report.segments_rewritten > 5 and report.kept == ()
    assert before - after > 0.9 * (before - report.live_bytes)
    assert vdisk.read(0, vdisk.size_bytes) == expected
    sound(small)
    # what is in rewritten segments is found by dedup, what was dropped is not
    small.create_vdisk(16 * MEBIBYTE, "b").write(0, bytes(expected))
    assert small.stats()["segment_bytes"] - after < len(expected) // 20
    small.close()
    reopened = Pool.open(pool_path, background=False)
    try:
        for name in ("a", "b"):
            assert reopened.find(name).read(0, len(expected)) == expected
        sound(reopened)
    finally:
        reopened.close()


def test_snapshots_and_clones_keep_what_they_need(small: Any) -> None:
    vdisk = small.create_vdisk(4 * MEBIBYTE, "a")
    first = fill(vdisk)
    [snapshot] = small.snapshot([vdisk])
    clone = small.clone(snapshot)
    vdisk.write(0, distinct_blocks(1 << 20, 1024))
    small.compact()
    assert snapshot.read(0, vdisk.size_bytes) == first == clone.read(0, vdisk.size_bytes)
    small.delete([snapshot, vdisk])
    small.compact()
    assert clone.read(0, vdisk.size_bytes) == first
    assert small.stats()["segment_bytes"] < 6 * MEBIBYTE
    sound(small)


def test_a_second_round_finds_nothing_to_do(small: Any) -> None:
    vdisk = small.create_vdisk(8 * MEBIBYTE)
    fill(vdisk)
    vdisk.discard(0, MEBIBYTE)
    small.compact()
    again = small.compact()
    assert (again.segments_removed, again.segments_rewritten, again.copied_bytes) == (0, 0, 0)


def test_text_is_compressed_and_noise_is_not(small: Any) -> None:
    text = small.create_vdisk(8 * MEBIBYTE)
    written = b"".join(block_data("text", seed, BLOCK) for seed in range(2048))
    text.write(0, written)
    small.compact()
    packed = small.stats()["segment_bytes"]
    assert packed < len(written) // 3
    noise = fill(small.create_vdisk(8 * MEBIBYTE, "noise"))
    small.compact()
    assert len(noise) * 0.97 < small.stats()["segment_bytes"] - packed < len(noise) * 1.03
    assert text.read(0, len(written)) == written
    assert [text.read(i * BLOCK, BLOCK) for i in range(0, 2048, 37)] == [
        written[i * BLOCK : (i + 1) * BLOCK] for i in range(0, 2048, 37)
    ]
    sound(small)


def test_the_files_say_the_same(small: Any, pool_path: str) -> None:
    """By the oracle that shares no code with the engine."""
    chosen = random.Random(7)
    disks = [small.create_vdisk(3 * MEBIBYTE, f"d{number}") for number in range(3)]
    expected = {disk.name: bytearray(disk.size_bytes) for disk in disks}
    for number in range(300):
        disk = chosen.choice(disks)
        block, count = chosen.randrange(700), chosen.randrange(1, 60)
        data = block_data(chosen.choice(("text", "noise", "repeat")), number, count * BLOCK)
        disk.write(block * BLOCK, data)
        expected[disk.name][block * BLOCK : (block + count) * BLOCK] = data
        if number == 150:
            small.snapshot(disks, [f"{disk.name}@half" for disk in disks])
            expected.update({f"{disk.name}@half": bytearray(expected[disk.name]) for disk in disks})
    small.delete(disks[2])
    del expected[disks[2].name]
    report = small.compact()
    small.close()
    files = PoolFiles(Path(pool_path))
    assert any(files.generations().values())
    assert files.live_bytes() == report.live_bytes
    assert {thing.name: files.content(thing) for thing in files.objects.values()} == expected
    live = {address for thing in files.objects.values() for address in files.addresses(thing).values()}
    for id, generation in files.generations().items():
        if generation:
            assert set(files.blocks(id)) == {address & 0xFFFFFFFF for address in live if address >> 32 == id}


def test_a_block_that_is_written_again_meanwhile_stays(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(4 * MEBIBYTE, "a")
    other = small.create_vdisk(4 * MEBIBYTE, "b")
    dead = fill(vdisk)
    vdisk.discard(0, vdisk.size_bytes)
    round = steps_of(small)
    round.begin()
    round.mark()
    before = small.stats()["blocks_deduplicated"]
    other.write(0, dead[: 300 * BLOCK])
    assert small.stats()["blocks_deduplicated"] - before == 300
    round.free_nodes()
    round.rewrite()
    other.write(300 * BLOCK, dead[300 * BLOCK : 400 * BLOCK])  # gone by now: written anew
    round.end()
    round.trim()
    assert other.read(0, 400 * BLOCK) == dead[: 400 * BLOCK]
    sound(small)
    small.close()
    reopened = Pool.open(pool_path, background=False)
    try:
        assert reopened.find("b").read(0, 400 * BLOCK) == dead[: 400 * BLOCK]
    finally:
        reopened.close()


def test_what_is_overwritten_meanwhile_stays_until_the_next_round(small: Any, pool_path: str) -> None:
    """A power cut could take the overwriting back."""
    vdisk = small.create_vdisk(2 * MEBIBYTE, "a")
    first = fill(vdisk)
    small.flush()
    round = steps_of(small)
    round.begin()
    copy = f"{pool_path}-copy"
    vdisk.discard(0, vdisk.size_bytes)
    round.mark()
    round.rewrite()
    shutil.copytree(pool_path, copy)  # the discard is in memory only
    reopened = Pool.open(copy, background=False)
    try:
        assert reopened.find("a").read(0, vdisk.size_bytes) == first
        sound(reopened)
    finally:
        reopened.close()
    round.end()
    small.compact()
    assert small.stats()["segment_bytes"] < MEBIBYTE


def test_guests_go_on(small: Any) -> None:
    """Readers and writers beside rounds without a pause; every read sees what was written last."""
    disks = [small.create_vdisk(4 * MEBIBYTE) for _ in range(3)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def guest(number: int) -> None:
        chosen = random.Random(number)
        disk = disks[number]
        expected = bytearray(disk.size_bytes)
        try:
            while not stop.is_set():
                block, count = chosen.randrange(960), chosen.randrange(1, 64)
                place = slice(block * BLOCK, (block + count) * BLOCK)
                kind = chosen.choice(("noise", "repeat", "text", "zero"))
                expected[place] = block_data(kind, chosen.randrange(1 << 16), count * BLOCK)
                disk.write(place.start, bytes(expected[place]))
                block = chosen.randrange(960)
                place = slice(block * BLOCK, (block + 64) * BLOCK)
                assert disk.read(place.start, 64 * BLOCK) == expected[place]
            assert disk.read(0, disk.size_bytes) == expected
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guest, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    rounds = [small.compact() for _ in range(12)]
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert sum(report.segments_rewritten + report.segments_removed for report in rounds) > 10
    assert all(report.kept == () for report in rounds)
    sound(small)


def test_node_slots_are_used_again(small: Any) -> None:
    """Leaves of disks that are gone; without reuse the node files would only grow."""
    sizes = []
    for _ in range(4):
        vdisk = small.create_vdisk(1 << 30)
        for leaf in range(200):
            vdisk.write(leaf * 512 * BLOCK, distinct_blocks(leaf, 1))
        small.checkpoint()
        small.delete(vdisk)
        report = small.compact()
        assert report.nodes_freed >= 200
        sizes.append(small.stats()["map_bytes"])
    assert max(sizes) < 1 << 16
    sound(small)


def test_churn_never_fills_the_pool(pool_path: str) -> None:
    """Three times the capacity is written with the pool's own rounds behind it; in the end next to nothing is left."""
    with Pool.create(pool_path, 1 << 30, segment_bytes=8 * MEBIBYTE) as pool:
        churn = Churn(pool, 64 * MEBIBYTE, 3, seed=1)
        done = churn.run(3 << 30)
        print(done)
        assert done.used_max < 1 << 30
        churn.delete_all()
        pool.compact()
        assert bytes_on_disk(pool_path) < 16 * MEBIBYTE
        sound(pool)


def test_a_full_pool_takes_writes_again_after_a_delete(pool_path: str) -> None:
    """A write that finds no room waits for the round that makes some; when there is nothing to give back it fails soon."""
    with Pool.create(pool_path, 64 * MEBIBYTE, **SEGMENT) as pool:
        kept = pool.create_vdisk(24 * MEBIBYTE)
        data = fill(kept)
        garbage = pool.create_vdisk(128 * MEBIBYTE)
        with pytest.raises(errors.PoolFull):
            for first in range(0, 32768, 256):
                garbage.write(first * BLOCK, distinct_blocks((1 << 20) + first, 256))
        pool.delete(garbage)
        more = pool.create_vdisk(16 * MEBIBYTE)
        written = fill(more, 1 << 24)
        assert more.read(0, len(written)) == written
        assert kept.read(0, len(data)) == data
        sound(pool)


def test_a_full_file_system_gets_room_by_a_delete(tmp_path: Path) -> None:
    """Even when there is no room for a checkpoint: the spare file's is lent for it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", tmp_path], check=True)
    try:
        with Pool.create(tmp_path / "pool", 1 << 30, **SEGMENT) as pool:
            kept = pool.create_vdisk(8 * MEBIBYTE)
            data = fill(kept)
            garbage = pool.create_vdisk(32 * MEBIBYTE)
            fill(garbage, 1 << 20)
            pool.checkpoint()
            with open(tmp_path / "foreign", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(1 << 12))
            with pytest.raises(errors.PoolFull):
                kept.write(0, distinct_blocks(1 << 24, 2048))
                kept.write(0, distinct_blocks(1 << 25, 2048))
            data = kept.read(0, len(data))
            pool.delete(garbage)
            pool.compact()
            more = pool.create_vdisk(16 * MEBIBYTE)
            written = fill(more, 1 << 26)
            assert more.read(0, len(written)) == written and kept.read(0, len(data)) == data
            sound(pool)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)  # what is left of the pool has files open


def test_a_damaged_block_keeps_its_segment(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(4 * MEBIBYTE)
    data = fill(vdisk)
    vdisk.discard(2 * MEBIBYTE, 2 * MEBIBYTE)
    small.checkpoint()
    with open(f"{pool_path}/segments/00000002.0", "r+b") as file:
        file.seek(100 * BLOCK + 77)
        file.write(b"\xff\x00\xff")
    report = small.compact()
    assert len(report.kept) == 1 and "00000002" in report.kept[0]
    bad = 0
    for block in range(512):
        try:
            assert vdisk.read(block * BLOCK, BLOCK) == data[block * BLOCK : (block + 1) * BLOCK]
        except errors.Corrupt:
            bad += 1
    assert bad == 1


def test_a_segment_that_reads_worse_than_when_it_was_counted_stays(small: Any, pool_path: str) -> None:
    """Without index and headers nobody knows its blocks: they must not be taken for dead."""
    vdisk = small.create_vdisk(2 * MEBIBYTE, "a")
    data = fill(vdisk)
    small.close()
    pool = Pool.open(pool_path, background=False)
    try:
        Compaction(pool, Pace(None, lambda _seconds: False), eager=False).run()  # counts, and leaves them as they are
        path = Path(pool_path, "segments", "00000001.0")
        whole = path.read_bytes()
        path.write_bytes(whole[:BLOCK] + bytes(len(whole) - BLOCK))
        report = pool.compact()
        assert len(report.kept) == 1 and path.exists()
        path.write_bytes(whole)
    finally:
        pool.close()
    with Pool.open(pool_path, background=False) as again:
        assert again.find("a").read(0, len(data)) == data


def test_a_damaged_map_stops_the_round(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(4 * MEBIBYTE, "a")
    fill(vdisk)
    small.close()
    for name in ("nodes", "nodes-mirror"):
        with open(f"{pool_path}/map/{name}", "r+b") as file:
            file.seek(4608 + 1000)
            file.write(b"damage")
    reopened = Pool.open(pool_path, background=False)
    try:
        before = reopened.stats()["segment_bytes"]
        with pytest.raises(errors.Corrupt, match="pool check"):
            reopened.compact()
        assert reopened.stats()["segment_bytes"] >= before
    finally:
        reopened.close()


def test_one_lost_sector_of_a_compacted_segment_is_healed(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(2 * MEBIBYTE, "a")
    data = fill(vdisk)
    small.compact()
    small.close()
    [path, *_] = sorted(Path(pool_path, "segments").glob("*.1"))
    whole = path.read_bytes()
    pages = int.from_bytes(whole[72:76], "little")
    index = int.from_bytes(whole[64:72], "little")
    for place in (0, index, index + pages * BLOCK, len(whole) - BLOCK):
        path.write_bytes(whole[:place] + bytes(BLOCK) + whole[place + BLOCK :])
        reopened = Pool.open(pool_path, background=False)
        try:
            assert reopened.find("a").read(0, len(data)) == data
            assert reopened.check() == []
        finally:
            reopened.close()
        assert path.read_bytes() == whole, f"the slot at {place} was not written anew"


def test_a_page_lost_in_both_copies_costs_its_blocks_only(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(2 * MEBIBYTE, "a")
    data = fill(vdisk)
    small.compact()
    small.close()
    [path, *_] = sorted(Path(pool_path, "segments").glob("*.1"))
    whole = bytearray(path.read_bytes())
    pages = int.from_bytes(whole[72:76], "little")
    index = int.from_bytes(whole[64:72], "little")
    for place in (index, index + pages * BLOCK):
        whole[place + 500] ^= 1
    path.write_bytes(whole)
    reopened = Pool.open(pool_path, background=False)
    try:
        found = reopened.find("a")
        bad = 0
        for block in range(512):
            try:
                assert found.read(block * BLOCK, BLOCK) == data[block * BLOCK : (block + 1) * BLOCK]
            except errors.Corrupt:
                bad += 1
        assert bad == 192
        assert any("a: bytes" in line for line in reopened.scrub())
        # a page that is lost may be found on a copy of the disk: the segment stays as it is
        found.discard(0, 180 * BLOCK)
        found.discard(200 * BLOCK, 30 * BLOCK)
        assert [reason for reason in reopened.compact().kept if path.name[:8] in reason]
    finally:
        reopened.close()


def test_a_start_removes_what_a_round_left(small: Any, pool_path: str) -> None:
    vdisk = small.create_vdisk(2 * MEBIBYTE, "a")
    data = fill(vdisk)
    small.checkpoint()
    segments = Path(pool_path, "segments")
    kept = (segments / "00000001.0").read_bytes()
    small.compact()
    small.close()
    (segments / "00000001.0").write_bytes(kept)
    (segments / "rewrite").write_bytes(b"half")
    reopened = Pool.open(pool_path, background=False)
    try:
        assert reopened.find("a").read(0, len(data)) == data
        assert not (segments / "rewrite").exists() and not (segments / "00000001.0").exists()
    finally:
        reopened.close()


def test_a_round_can_be_cancelled_anywhere(small: Any) -> None:
    vdisk = small.create_vdisk(8 * MEBIBYTE)
    data = bytearray(fill(vdisk))
    vdisk.discard(0, 2 * MEBIBYTE)
    data[: 2 * MEBIBYTE] = bytes(2 * MEBIBYTE)
    ended = 0
    for allowed in (*range(12), 1000):
        left = iter([False] * allowed)
        try:
            Compaction(small, Pace(None, lambda _seconds, left=left: next(left, True))).run()
        except Cancelled:
            ended += 1
        assert vdisk.read(0, len(data)) == data
    assert ended > 4
    sound(small)


def test_an_older_build_refuses_a_compacted_pool(small: Any, pool_path: str) -> None:
    fill(small.create_vdisk(MEBIBYTE))
    small.close()
    assert PoolFiles(Path(pool_path)).superblock["sequence"] > 0
    for which in (0, 1):
        assert Path(pool_path, f"superblock-{which}").read_bytes()[20:24] == bytes(4)
    reopened = Pool.open(pool_path, background=False)
    reopened.compact()
    reopened.close()
    for which in (0, 1):
        assert Path(pool_path, f"superblock-{which}").read_bytes()[20:24] == b"\x01\0\0\0"
