"""The files are what docs/format/pool.md says, byte for byte, and mean what the engine reads from them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.records import Item, decode_record, encode_record
from blockdev.superblock import Superblock, encode
from tests.engine.format_reader import PoolFiles


@pytest.fixture
def written(tmp_path: Path, seed: int) -> tuple[Path, dict[str, bytes]]:
    """A closed pool with all kinds of entries and records, and what each of its objects holds."""
    rng = random.Random(seed)
    path = tmp_path / "pool"
    pool = Pool.create(path, 1 << 30, segment_bytes=1 << 20)
    a, b = pool.create_vdisks([(8 << 20, "vm/a", b"tag"), ((2 << 20) + 512, "vm/b", b"")])
    for round_number in range(6):
        for disk in (a, b):
            for _ in range(40):
                length = rng.choice((512, 4096, 40960))
                offset = rng.randrange(0, (disk.size_bytes - length) // 512) * 512
                disk.write(offset, rng.randbytes(length) if rng.random() < 0.8 else b"same" * (length // 4))
            disk.discard(rng.randrange(100) * 4096, 65536)
        pool.flush()
        if round_number == 2:
            pool.snapshot([a, b], ["vm/a@1", "vm/b@1"])
            pool.checkpoint()
        if round_number == 3:
            pool.clone(pool.find("vm/a@1"), "clone/a").write(0, rng.randbytes(8192))
            pool.restore([(b, pool.find("vm/b@1"))])
            a.resize(1 << 31)
    pool.delete(pool.find("vm/b@1"))
    pool.relabel([(b, "other/b", b"new")])
    a.resize(16 << 20)
    contents = {thing.name: thing.read(0, thing.size_bytes) for thing in [*pool.vdisks(), *pool.snapshots()]}
    pool.close()
    return path, contents


def test_the_files_alone_tell_every_disk(written: tuple[Path, dict[str, bytes]]) -> None:
    path, contents = written
    files = PoolFiles(path)
    assert {thing.name for thing in files.objects.values()} == set(contents)
    for thing in files.objects.values():
        assert files.content(thing) == contents[thing.name], thing.name


def test_every_segment_of_a_closed_pool_is_sealed_and_whole(written: tuple[Path, dict[str, bytes]]) -> None:
    path, _contents = written
    files = PoolFiles(path)
    names = sorted(entry.name for entry in (path / "segments").glob("*.0"))
    assert len(names) > 2
    for name in names:
        files.segment(int(name.split(".")[0], 16))


def test_object_table_keeps_labels_and_origins(written: tuple[Path, dict[str, bytes]]) -> None:
    files = PoolFiles(written[0])
    by_name = {thing.name: thing for thing in files.objects.values()}
    assert by_name["other/b"].tag == b"new"
    assert by_name["vm/a@1"].origin == by_name["vm/a"].id
    assert by_name["clone/a"].origin == by_name["vm/a@1"].id
    assert (
        by_name["vm/a"].epoch == 2 and by_name["other/b"].epoch == 3
    )  # one snapshot; a snapshot and a restore
    assert files.next_object_id > max(files.objects)


def test_golden_superblock() -> None:
    block = Superblock(bytes(range(16)), 7, 9, 100, 0x1122334455667788, 16384, 1 << 40, 1_700_000_000)
    content = encode(block)
    assert len(content) == 4096
    assert content[:104].hex() == (
        "424c4f434b444556" + content[8:16].hex() + "02000000" + "00000000" + "00000000" + "00100000"
        "000102030405060708090a0b0c0d0e0f" + "0700000000000000" + "0900000000000000" + "6400000000000000"
        "8877665544332211" + "00400000" + "01010300" + "0000000000010000" + "00f1536500000000"
    )
    assert content[8:16].hex() == "165306e242bbc062"
    assert not any(content[104:])


def test_golden_record() -> None:
    record = encode_record(1, [Item(5, 0, 4096, "a/b", b"t"), Item(6, 5)])
    assert record.hex() == (
        "01010000" + "02000000"
        "05000000" + "00000000" + "0010000000000000" + "0300" + "0100" + "612f62" + "74"
        "06000000" + "05000000" + "0000000000000000" + "ffff" + "0000"
    )
    assert decode_record(record) == (1, [Item(5, 0, 4096, "a/b", b"t"), Item(6, 5)])
