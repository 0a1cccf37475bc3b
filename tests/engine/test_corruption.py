"""Damaged bytes at rest are reported, named and contained; wrong data is never returned."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from tests.engine.content import block_data, distinct_blocks
from tests.engine.model import BLOCK

MEBIBYTE = 1 << 20
DISKS = ("vm/root", "vm/data")
BLOCKS = 1024


def expected(name: str) -> bytes:
    return distinct_blocks(BLOCKS * DISKS.index(name), BLOCKS)


@pytest.fixture
def closed(pool_path: str) -> str:
    """A pool with two vdisks of known content, a snapshot and a clone, closed."""
    pool = Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=2 * MEBIBYTE)
    for name in DISKS:
        pool.create_vdisk(BLOCKS * BLOCK, name).write(0, expected(name))
    pool.snapshot([pool.find(name) for name in DISKS], [f"{name}@s" for name in DISKS])
    pool.clone(pool.find("vm/root@s"), "clone/root")
    pool.close()
    return pool_path


def find_in_segments(path: str, block: bytes) -> tuple[Path, int]:
    for file in sorted((Path(path) / "segments").glob("*.0")):
        at = file.read_bytes().find(block)
        if at >= 0:
            return file, at
    raise AssertionError("the block is in no segment")


def flip(file: Path, at: int, mask: int = 0x10) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ mask]))


@pytest.mark.parametrize("inside", [0, 1, 511, 2048, 4095])
def test_flipped_byte_in_a_block_is_an_error_that_names_the_place(
    closed: str, inside: int, capfd: pytest.CaptureFixture[str]
) -> None:
    number = 700
    block = expected("vm/root")[number * BLOCK : (number + 1) * BLOCK]
    file, at = find_in_segments(closed, block)
    flip(file, at + inside)
    pool = Pool.open(closed)
    try:
        for name in ("vm/root", "vm/root@s", "clone/root"):
            disk = pool.find(name)
            with pytest.raises(errors.Corrupt) as caught:
                disk.read(number * BLOCK, BLOCK)
            said = str(caught.value)
            assert name in said and str(number * BLOCK) in said, said
            logged = f"{name} offset {number * BLOCK}, segment {file.name.split('.')[0]} slot {at // BLOCK}"
            assert logged in capfd.readouterr().err
            with pytest.raises(errors.Corrupt):
                disk.read(0, disk.size_bytes)
            with pytest.raises(errors.Corrupt):
                disk.read_into((number - 3) * BLOCK, bytearray(8 * BLOCK))
            assert disk.read(0, number * BLOCK) == expected("vm/root")[: number * BLOCK]
            after = (number + 1) * BLOCK
            assert disk.read(after, disk.size_bytes - after) == expected("vm/root")[after:]
        assert pool.find("vm/data").read(0, BLOCKS * BLOCK) == expected("vm/data")
        findings = pool.scrub()
        assert findings and any("vm/root" in finding for finding in findings)
    finally:
        pool.close()


def test_sub_block_write_to_a_damaged_block_fails_and_a_whole_one_heals_it(closed: str) -> None:
    block = expected("vm/root")[:BLOCK]
    flip(*find_in_segments(closed, block))
    pool = Pool.open(closed)
    try:
        vdisk = pool.find("vm/root")
        with pytest.raises(errors.Corrupt):
            vdisk.write(512, b"\x01" * 512)
        vdisk.write(0, block)  # the damaged block is a dedup candidate; it must not be taken
        assert vdisk.read(0, BLOCK) == block
        with pytest.raises(errors.Corrupt):
            pool.find("vm/root@s").read(0, BLOCK)
        vdisk.write(BLOCK, b"\x05" * BLOCK)
    finally:
        pool.close()


def test_damaged_block_is_not_used_for_dedup_after_reopen(closed: str) -> None:
    block = expected("vm/data")[5 * BLOCK : 6 * BLOCK]
    flip(*find_in_segments(closed, block))
    pool = Pool.open(closed)
    try:
        other = pool.create_vdisk(MEBIBYTE, "other")
        other.write(0, block)
        assert other.read(0, BLOCK) == block
    finally:
        pool.close()


def outcome(path: str) -> str:
    """Opens, reads all and checks; asserts that what is returned is right."""
    try:
        pool = Pool.open(path, background=False)
    except (errors.Corrupt, errors.UnknownFormat):
        return "refused"
    wrong = 0
    try:
        for name in (*DISKS, *(f"{name}@s" for name in DISKS), "clone/root"):
            source = expected("vm/" + name.split("/")[1].split("@")[0])
            disk = pool.find(name)
            for start in range(0, BLOCKS, 64):
                try:
                    data = disk.read(start * BLOCK, 64 * BLOCK)
                except errors.Corrupt:
                    wrong += 1
                    continue
                assert data == source[start * BLOCK : (start + 64) * BLOCK], (
                    f"{name} block {start}: wrong data"
                )
        findings = pool.check() + pool.scrub()
        assert findings or not wrong, "reads fail and neither check nor scrub finds anything"
        return "found" if findings else "harmless"
    finally:
        pool.close()


def test_any_flipped_bit_is_harmless_or_reported(closed: str, seed: int) -> None:
    """Every file of a closed pool, random bits: right data or an error, never a crash."""
    chosen = random.Random(seed)
    pristine = f"{closed}-pristine"
    shutil.copytree(closed, pristine)
    files = [file for file in sorted(Path(pristine).rglob("*")) if file.is_file() and file.stat().st_size]
    small = [file for file in files if "segments" not in file.parts]
    outcomes: dict[str, int] = {}
    for turn in range(80):
        file = chosen.choice(small if turn % 2 else files)
        at, mask = chosen.randrange(file.stat().st_size), 1 << chosen.randrange(8)
        print(f"turn {turn}: {file.relative_to(pristine)} byte {at} mask {mask:#x}")
        shutil.rmtree(closed)
        shutil.copytree(pristine, closed)
        flip(Path(closed) / file.relative_to(pristine), at, mask)
        result = outcome(closed)
        outcomes[result] = outcomes.get(result, 0) + 1
    print(outcomes)
    assert outcomes.get("found"), "no flip was ever found: this test looks at nothing"


def quiet_pool(path: str) -> Any:
    """Without background work its directory can be copied at any time."""
    Pool.create(path, 256 * MEBIBYTE, segment_bytes=4 * MEBIBYTE).close()
    return Pool.open(path, background=False)


def test_garbage_after_the_end_of_the_log_is_ignored(pool_path: str) -> None:
    """A torn batch: what recovery finds after the last sound one is not taken and does not harm."""
    pool = quiet_pool(pool_path)
    pool.create_vdisk(MEBIBYTE, "a").write(0, distinct_blocks(0, 16))
    pool.flush()
    copy = f"{pool_path}-copy"
    shutil.copytree(pool_path, copy)
    pool.close()
    last = max((Path(copy) / "segments").glob("*.0"))
    with open(last, "ab") as file:
        file.write(block_data("noise", 1, 3 * BLOCK + 100))
    for content in (b"\x01" * BLOCK, b"\x02" * BLOCK):
        reopened = Pool.open(copy)
        assert reopened.find("a").read(0, 16 * BLOCK)[BLOCK:] == distinct_blocks(1, 15)
        reopened.find("a").write(0, content)
        reopened.close()
    reopened = Pool.open(copy)
    assert reopened.find("a").read(0, BLOCK) == b"\x02" * BLOCK
    assert reopened.check() == []
    reopened.close()


@pytest.mark.parametrize("cut_bytes", [1, 511, 4096, 10_000, 70_000])
def test_a_log_cut_short_recovers_to_an_earlier_state(pool_path: str, cut_bytes: int) -> None:
    """What a power cut leaves of unsynced appends: a shorter file.  Older writes are there, none is half there."""
    pool = quiet_pool(pool_path)
    vdisk = pool.create_vdisk(MEBIBYTE, "a")
    vdisk.write(0, distinct_blocks(0, 4))
    pool.flush()
    for number in range(200):
        vdisk.write(number % 16 * BLOCK, distinct_blocks(1000 + number, 1))
    copy = f"{pool_path}-copy"
    shutil.copytree(pool_path, copy)
    pool.close()
    last = max((Path(copy) / "segments").glob("*.0"))
    with open(last, "r+b") as file:
        file.truncate(max(last.stat().st_size - cut_bytes, 0))
    reopened = Pool.open(copy)
    survived = reopened.find("a").read(0, 16 * BLOCK)
    assert any(survived == state(count) for count in range(201))
    assert reopened.check() == []
    reopened.close()


def state(count: int) -> bytes:
    blocks = [distinct_blocks(number, 1) if number < 4 else bytes(BLOCK) for number in range(16)]
    for number in range(count):
        blocks[number % 16] = distinct_blocks(1000 + number, 1)
    return b"".join(blocks)


def test_segment_directory_listing_is_parsed_with_care(closed: str) -> None:
    """Files that are not segments do not stop a pool from opening."""
    segments = Path(closed) / "segments"
    (segments / "notes.txt").write_text("mine")
    (segments / "zzzz.0").write_bytes(b"")
    (segments / ".hidden").write_bytes(b"x")
    assert outcome(closed) in ("harmless", "found")


def test_a_missing_segment_is_reported(closed: str) -> None:
    file, _ = find_in_segments(closed, expected("vm/root")[:BLOCK])
    file.unlink()
    assert outcome(closed) in ("refused", "found")


def test_a_read_of_a_missing_segment_is_an_input_error(closed: str) -> None:
    """NBD has no ENOENT: nbdkit would say EINVAL, and clients would think it their own mistake."""
    file, _ = find_in_segments(closed, expected("vm/root")[:BLOCK])
    with Pool.open(closed, background=False) as pool:
        file.unlink()
        with pytest.raises(errors.BlockdevError) as raised:
            pool.find("vm/root").read(0, BLOCK)
    assert raised.value.errno == errno.EIO


def test_missing_map_nodes_are_reported(closed: str) -> None:
    for file in (Path(closed) / "map").iterdir():
        file.write_bytes(b"")
    assert outcome(closed) in ("refused", "found")
