"""Recovery of a log with damaged bytes: what is damaged is lost, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from tests.engine.content import distinct_blocks
from tests.engine.format_reader import PoolFiles

BLOCK = 4096
BATCHES = 8
BATCH_BLOCKS = 16
TOTAL = BATCHES * BATCH_BLOCKS


@pytest.fixture
def killed(pool_path: str) -> str:
    """A pool killed with an unsealed segment: eight batches before the checkpoint, one behind it."""
    Pool.create(pool_path, 256 << 20, segment_bytes=4 << 20).close()
    pool = Pool.open(pool_path, background=False)
    vdisk = pool.create_vdisk(1 << 20, "a")
    for number in range(BATCHES):
        vdisk.write(
            number * BATCH_BLOCKS * BLOCK, distinct_blocks(number * BATCH_BLOCKS, BATCH_BLOCKS), fua=True
        )
    pool.checkpoint()
    vdisk.write(TOTAL * BLOCK, distinct_blocks(TOTAL, BATCH_BLOCKS), fua=True)
    copy = f"{pool_path}-killed"
    shutil.copytree(pool_path, copy)
    pool.close()
    return copy


def batch_slots(segment: Path) -> list[tuple[int, int]]:
    """Of each batch, where both copies of its header are."""
    raw = segment.read_bytes()
    copies = [at // BLOCK for at in range(0, len(raw), BLOCK) if raw[at : at + 8] == b"BLDBAT1\0"]
    return list(zip(copies[::2], copies[1::2], strict=True))


def unreadable(vdisk: Any) -> list[int]:
    """Numbers of the blocks that are an error; all others must be right."""
    bad = []
    for number in range(TOTAL + BATCH_BLOCKS):
        try:
            assert vdisk.read(number * BLOCK, BLOCK) == distinct_blocks(number, 1), f"block {number} is wrong"
        except errors.Corrupt:
            bad.append(number)
    return bad


@pytest.mark.parametrize("batch", [0, 3, BATCHES - 1])
def test_damaged_header_before_the_checkpoint_costs_its_own_batch_only(killed: str, batch: int) -> None:
    segment = Path(killed, "segments", "00000001.0")
    slots = batch_slots(segment)[1 + batch]  # the first is of the record that makes the disk
    with open(segment, "r+b") as file:
        for slot in slots:
            file.seek(slot * BLOCK + 200)
            file.write(b"\xff\xff")
    lost = list(range(batch * BATCH_BLOCKS, (batch + 1) * BATCH_BLOCKS))
    for _ in range(2):
        pool = Pool.open(killed, background=False)
        assert unreadable(pool.find("a")) == lost
        start, end = lost[0] * BLOCK, (lost[-1] + 1) * BLOCK - 1
        assert any(found.startswith(f"a: bytes {start} to {end}: ") for found in pool.check())
        pool.close()


def test_a_segment_that_was_cut_is_whole_by_its_own_trailer(killed: str) -> None:
    segment = Path(killed, "segments", "00000001.0")
    with open(segment, "r+b") as file:  # the payload of the last batch is torn
        file.seek((batch_slots(segment)[-1][0] + 3) * BLOCK)
        file.write(b"\xff\xff")
    pool = Pool.open(killed, background=False)
    assert pool.find("a").read(0, TOTAL * BLOCK) == distinct_blocks(0, TOTAL)
    assert pool.find("a").read(TOTAL * BLOCK, BLOCK) == bytes(BLOCK)
    pool.close()
    PoolFiles(Path(killed)).segment(1)
