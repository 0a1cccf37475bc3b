"""Check and scrub of a pool in use: what they name, whom, at what pace, and how long it is remembered."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import xxhash

from blockdev import Pool, findings, offline
from blockdev.errors import Busy, Gone, NotFound
from blockdev.inspection import Inspection, subject_of
from blockdev.runner import Cancelled, Pace
from tests.engine.content import distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
NODE = 4608
SMALL: dict[str, Any] = {"map_cache_bytes": 1 << 18, "dedup_bytes": 1 << 20, "background": False}
DEADLINE_S = 120.0
LEAF = 512  # blocks


@pytest.fixture
def closed(pool_path: str) -> str:
    """web/root in two leaves, a snapshot, a clone, and a disk of another VM that shares eight blocks by dedup."""
    pool = Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=MEBIBYTE)
    root = pool.create_vdisk(4 * MEBIBYTE, "web/root")
    root.write(0, distinct_blocks(0, 40))
    root.write(LEAF * BLOCK, distinct_blocks(100, 300))
    pool.snapshot([root], ["web/root@monday"])
    pool.clone(pool.find("web/root@monday"), "test/root")
    pool.create_vdisk(MEBIBYTE, "other/data").write(16 * BLOCK, distinct_blocks(0, 8))
    pool.close()
    return pool_path


def open_pool(path: str) -> Pool:
    return Pool.open(path, **SMALL)


def damage(path: str, number: int, count: int = 1) -> None:
    """Flip a bit in each of these blocks, wherever they are."""
    for block in range(number, number + count):
        for file in sorted(Path(path, "segments").iterdir()):
            at = file.read_bytes().find(distinct_blocks(block, 1))
            if at >= 0:
                overwrite(file, at + 17, bytes([file.read_bytes()[at + 17] ^ 4]))


def overwrite(file: Path, at: int, data: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(data)


def places(found: tuple[findings.Finding, ...]) -> set[tuple[str, int, int]]:
    return {(finding.name, finding.offset, finding.length) for finding in found}


# --- whom it hits ---


def test_a_damaged_block_is_named_for_every_disk_and_snapshot_that_has_it(closed: str) -> None:
    damage(closed, 3, 2)
    damage(closed, 6)
    with open_pool(closed) as pool:
        found = pool.inspector.run("scrub").findings
        shared = {(name, 3 * BLOCK, 2 * BLOCK) for name in ("web/root", "web/root@monday", "test/root")}
        shared |= {(name, 6 * BLOCK, BLOCK) for name in ("web/root", "web/root@monday", "test/root")}
        assert places(found) == shared | {("other/data", 19 * BLOCK, 2 * BLOCK), ("other/data", 22 * BLOCK, BLOCK)}
        assert all("segment 00000001 slot" in finding.line() for finding in found)


def test_a_node_lost_in_both_copies_is_named_with_all_that_it_maps(closed: str) -> None:
    lost = [id for id in node_ids(closed) if level_of(closed, id) == 0 and entry_of(closed, id, 299)]
    for id in lost:  # the leaf of the second 2 MiB
        for name in ("nodes", "nodes-mirror"):
            overwrite(Path(closed, "map", name), id * NODE + 900, b"\xff\xff")
    with open_pool(closed) as pool:
        for kind in ("check", "scrub"):
            found = pool.inspector.run(kind).findings
            assert places(found) == {
                (name, LEAF * BLOCK, LEAF * BLOCK) for name in ("web/root", "web/root@monday", "test/root")
            }
        pool.find("web/root").discard(LEAF * BLOCK, LEAF * BLOCK)
        assert {finding.name for finding in pool.inspector.known().findings} == {"web/root@monday", "test/root"}


def test_mass_damage_is_bounded_and_every_disk_is_named(pool_path: str) -> None:
    with Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=MEBIBYTE) as pool:
        root = pool.create_vdisk(8 * MEBIBYTE, "vm/root")
        root.write(0, distinct_blocks(0, 1000))
        snapshots = [pool.snapshot([root], [f"vm/root@{number}"])[0].name for number in range(20)]
    damage_every_second_block(pool_path)
    with open_pool(pool_path) as pool:
        report = pool.inspector.run("scrub")
        assert len(report.findings) + report.dropped < 1000
        assert len(report.findings) <= findings.FINDINGS_MAX
        first = [finding for finding in report.findings if finding.name == "vm/root"]
        assert len(first) == findings.DISK_FINDINGS_MAX + 1
        assert first[-1].what == f"{(500 - findings.DISK_FINDINGS_MAX) * BLOCK} more bytes cannot be read"
        assert {finding.name for finding in report.findings} == {"vm/root", *snapshots}


def damage_every_second_block(path: str) -> None:
    for file in sorted(Path(path, "segments").iterdir()):
        content = bytearray(file.read_bytes())
        for number in range(0, 1000, 2):
            at = content.find(distinct_blocks(number, 1))
            if at >= 0:
                content[at + 5] ^= 1
        file.write_bytes(content)


# --- structure: bytes that verify, and say what cannot be ---


def node_record(path: str, id: int) -> bytearray:
    return bytearray(Path(path, "map/nodes").read_bytes()[id * NODE : (id + 1) * NODE])


def node_ids(path: str) -> list[int]:
    size = Path(path, "map/nodes").stat().st_size
    return [id for id in range(1, size // NODE) if node_record(path, id)[:7] == b"BDNODE1"]


def level_of(path: str, id: int) -> int:
    return int(struct.unpack_from("<I", node_record(path, id), 56)[0])


def entry_of(path: str, id: int, index: int) -> int:
    return int(struct.unpack_from("<Q", node_record(path, id), 512 + index * 8)[0])


def set_entry(path: str, id: int, index: int, value: int) -> None:
    """Change a node in both copies, well signed."""
    record = node_record(path, id)
    struct.pack_into("<Q", record, 512 + index * 8, value)
    struct.pack_into("<Q", record, 8, xxhash.xxh3_64_intdigest(bytes(record[16:])))
    for name in ("nodes", "nodes-mirror"):
        overwrite(Path(path, "map", name), id * NODE, bytes(record))


def leaf_of(path: str, name: str, block: int) -> tuple[int, int]:
    """(id of the leaf, id of its parent)."""
    from blockdev import _check

    with open_pool(path) as pool:
        ids, _address = _check.map_ids(pool.find(name), block)
    return ids[0], ids[1]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (0x77 << 32 | 5, "segment 00000077 slot 5 is not there"),
        (1 << 32 | 0xFFFF, "segment 00000001 slot 65535 is beyond the end of the segment"),
        (1 << 32 | 1, "segment 00000001 slot 1 holds no block"),
    ],
)
def test_an_address_that_names_no_block_is_found(closed: str, address: int, says: str) -> None:
    leaf, _parent = leaf_of(closed, "other/data", 16)
    set_entry(closed, leaf, 200, address)
    with open_pool(closed) as pool:
        assert pool.check() == [f"other/data: bytes {200 * BLOCK} to {201 * BLOCK - 1}: {says}"]
        assert pool.scrub() == pool.check()
    assert [finding.line() for finding in offline.inspect(closed, "check").findings] == [
        f"other/data: bytes {200 * BLOCK} to {201 * BLOCK - 1}: {says}"
    ]


def test_a_node_in_two_places_is_found(closed: str) -> None:
    leaf, parent = leaf_of(closed, "web/root", 0)
    set_entry(closed, parent, 1, leaf)
    with open_pool(closed) as pool:
        assert f"map node {leaf} is in two places of the maps" in pool.check()


def test_a_node_that_is_free_and_in_use_is_found(pool_path: str) -> None:
    pool = Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=MEBIBYTE)
    disk = pool.create_vdisk(4 * MEBIBYTE, "a/b")
    for number in range(6):
        disk.write(0, distinct_blocks(number, 1))
        disk.write(LEAF * BLOCK, distinct_blocks(50 + number, 1))
        pool.checkpoint()
    pool.close()
    _leaf, parent = leaf_of(pool_path, "a/b", 0)
    table = max(Path(pool_path, "map").glob("checkpoint-*"), key=lambda file: int(file.name.split("-")[1])).read_bytes()
    free_count, retired_count = struct.unpack_from("<QQ", table, 56)
    free = struct.unpack_from(f"<{free_count}Q", table, len(table) - retired_count * 16 - free_count * 8)
    unused = next(id for id in free if level_of(pool_path, id) == 0)
    set_entry(pool_path, parent, 1, unused)
    with open_pool(pool_path) as pool:
        assert f"map node {unused} is in use and on the list of free ones" in pool.check()


def test_a_map_behind_the_end_of_its_disk_is_found(closed: str) -> None:
    leaf, _parent = leaf_of(closed, "other/data", 16)
    set_entry(closed, leaf, 300, entry_of(closed, leaf, 16))  # the disk has 256 blocks
    with open_pool(closed) as pool:
        assert pool.check() == ["other/data: its map does not fit its size"]


# --- pace ---


class Time:
    """A clock that only waiting moves."""

    def __init__(self, over_at: float = float("inf")) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self._over_at = over_at

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return self.now >= self._over_at


def test_a_rate_is_kept(closed: str) -> None:
    time = Time()
    with open_pool(closed) as pool:
        pace = Pace(MEBIBYTE // 2, time.wait, lambda: time.now)
        report = Inspection(subject_of(pool), "scrub", pace).run()
    assert report.done_bytes > MEBIBYTE
    assert time.now - 1000 == pytest.approx(report.done_bytes / (MEBIBYTE // 2))
    assert max(time.waits) <= 2.0  # a step of 1 MiB


def test_without_a_rate_nothing_waits(closed: str) -> None:
    time = Time()
    with open_pool(closed) as pool:
        Inspection(subject_of(pool), "scrub", Pace(None, time.wait, lambda: time.now)).run()
    assert time.now == 1000.0


def test_an_inspection_that_is_cancelled_ends_at_its_next_step(closed: str) -> None:
    time = Time(over_at=1000.5)
    with open_pool(closed) as pool:
        inspection = Inspection(subject_of(pool), "scrub", Pace(MEBIBYTE, time.wait, lambda: time.now))
        with pytest.raises(Cancelled):
            inspection.run()
        assert 0 < inspection.done_bytes < inspection.total_bytes
        assert pool.scrub() == []


# --- one at a time ---


def held(pool: Pool) -> int:
    """A scrub that will take days."""
    return pool.inspector.start("scrub", 1)


def test_a_scrub_is_joined_and_another_inspection_is_refused_meanwhile(closed: str) -> None:
    with open_pool(closed) as pool:
        run = held(pool)
        assert pool.inspector.start("scrub", None) == run
        with pytest.raises(Busy, match="a scrub of the pool is running"):
            pool.inspector.start("check", None)
        progress = pool.inspector.progress()
        assert progress is not None and progress.run == run and progress.kind == "scrub"
        assert pool.inspector.outcome(run, 0).state == "running"
        pool.find("web/root").write(0, distinct_blocks(77, 1))
        pool.snapshot([pool.find("web/root")], ["web/root@meanwhile"])
        pool.checkpoint()
        pool.inspector.cancel(run)
        assert pool.inspector.outcome(run, DEADLINE_S).state == "cancelled"
        assert pool.inspector.progress() is None
        again = pool.inspector.start("check", None)
        assert pool.inspector.outcome(again, DEADLINE_S).state == "done"
        assert pool.inspector.outcome(run, 0).state == "cancelled"
        with pytest.raises(NotFound):
            pool.inspector.outcome(again + 1, 0)


def test_close_ends_a_scrub(closed: str) -> None:
    pool = open_pool(closed)
    run = held(pool)
    pool.close()
    assert pool.inspector.outcome(run, 0).state == "cancelled"
    with pytest.raises(Gone):
        pool.inspector.start("scrub", None)
    with pytest.raises(Gone):
        pool.check()


def test_a_pool_changes_under_a_scrub_and_nothing_wrong_is_found(pool_path: str) -> None:
    """Writers, snapshots, deletes, resizes and checkpoints go on while it is scrubbed over and over."""
    pool = Pool.create(pool_path, 1024 * MEBIBYTE, segment_bytes=MEBIBYTE)
    disk = pool.create_vdisk(16 * MEBIBYTE, "a/b")
    disk.write(0, distinct_blocks(0, 2000))
    done = threading.Event()
    failures: list[BaseException] = []

    def change() -> None:
        try:
            for number in range(60):
                disk.write(number * 50 * BLOCK, distinct_blocks(10_000 + number * 100, 100))
                [taken] = pool.snapshot([disk], [f"a/b@{number}"])
                disk.discard(number * 40 * BLOCK, 10 * BLOCK)
                disk.resize((16 + number % 3) * MEBIBYTE)
                if number % 3:
                    pool.delete(taken)
                pool.checkpoint()
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    changing = threading.Thread(target=change)
    changing.start()
    reports = []
    while not done.is_set():
        reports += [pool.inspector.run("check"), pool.inspector.run("scrub")]
    changing.join()
    assert not failures
    assert [report.findings for report in reports if report.findings or report.healed] == []
    assert pool.scrub() == []
    pool.close()


# --- how long it is known ---


def test_findings_are_known_after_a_restart_until_they_are_gone(closed: str) -> None:
    damage(closed, 3, 3)
    with open_pool(closed) as pool:
        assert pool.inspector.known() == findings.Known()
        pool.scrub()
    with open_pool(closed) as pool:
        known = pool.inspector.known()
        assert known.scrub is not None and known.scrub.finding_count == 4 and len(known.findings) == 4
        pool.find("web/root").write(4 * BLOCK, distinct_blocks(5000, 1))
        web = [f for f in pool.inspector.known().findings if f.name == "web/root"]
        assert [(f.offset, f.length) for f in web] == [(3 * BLOCK, BLOCK), (5 * BLOCK, BLOCK)]
        assert web[1].what == f"segment 00000001 slot {(web[1].address & 0xFFFFFFFF)} does not verify"
        pool.relabel([(pool.find("test/root"), "best/root", b"")])
        pool.delete(pool.find("web/root@monday"))
        pool.find("other/data").discard(0, MEBIBYTE)
        left = {f.name for f in pool.inspector.known().findings}
        assert left == {"web/root", "best/root"}
    with open_pool(closed) as pool:
        assert {f.name for f in pool.inspector.known().findings} == left
        pool.delete(pool.find("best/root"))
        pool.find("web/root").write(0, distinct_blocks(6000, 40))
        assert pool.inspector.known().findings == ()
    with open_pool(closed) as pool:
        assert pool.inspector.known().findings == () and pool.inspector.known().scrub is not None


def test_a_check_looks_again_at_what_a_scrub_found(closed: str) -> None:
    before = {file: file.read_bytes() for file in Path(closed, "segments").iterdir()}
    damage(closed, 3)
    with open_pool(closed) as pool:
        found = pool.scrub()
        assert len(found) == 4 and pool.check() == found
        for file, content in before.items():  # somebody puts the file back
            overwrite(file, 0, content[: len(content) - 2 * BLOCK])
        assert len(pool.inspector.known().findings) == 4
        assert pool.check() == []
        assert pool.inspector.known().findings == ()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"blockdev findings 1 0123456789abcdef\n{}\n"])
def test_a_damaged_file_of_findings_is_a_finding_until_the_next_scrub(closed: str, content: bytes) -> None:
    Path(closed, "findings").write_bytes(content)
    with open_pool(closed) as pool:
        [finding] = pool.inspector.known().findings
        assert "what earlier checks and scrubs found is not known" in finding.line()
        assert len(pool.check()) == 1
        assert pool.scrub() == [] and pool.inspector.known().findings == ()


# --- offline ---


def files_of(path: str) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(Path(path).rglob("*")) if f.is_file()}


def test_an_offline_scrub_reads_only(closed: str) -> None:
    damage(closed, 3)
    before = files_of(closed)
    found = offline.inspect(closed, "scrub").findings
    assert len(found) == 4 and before.keys() == files_of(closed).keys()
    assert [name for name, content in files_of(closed).items() if content != before[name]] in ([], ["LOCK"])


def test_offline_names_each_copy_that_is_lost(closed: str) -> None:
    overwrite(Path(closed, "superblock-1"), 100, b"\xaa" * 8)  # the older one
    Path(closed, "map/nodes-mirror").rename(Path(closed, "away"))
    lines = [finding.line() for finding in offline.inspect(closed, "check").findings]
    assert "superblock-1 does not verify" in lines
    assert sum("one of two copies did not verify" in line for line in lines) > 2
    assert not Path(closed, "map/nodes-mirror").exists()


def test_offline_needs_a_pool_that_nobody_has(closed: str) -> None:
    with open_pool(closed), pytest.raises(Busy):
        offline.inspect(closed, "check")
    with pytest.raises(NotFound):
        offline.inspect(closed + "-elsewhere", "check")
    assert offline.inspect(closed, "scrub").findings == ()


def test_offline_tells_how_far_it_is(closed: str) -> None:
    seen: list[tuple[int, int]] = []
    report = offline.inspect(closed, "scrub", None, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and len(seen) > 4
    assert report.done_bytes >= seen[-1][0] > 0
