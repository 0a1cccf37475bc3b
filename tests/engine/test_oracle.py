"""The oracle itself: legal crash states are explained, illegal ones are not."""

from __future__ import annotations

import pytest

from blockdev import Extent
from tests.engine.content import block_data, colliding_blocks, distinct_blocks, read_stamps, stamped
from tests.engine.model import BLOCK, SECTOR, Content, NoLegalState, Step, settle

DISK_BYTES = 64 * BLOCK


def step(disk: int, offset: int, data: bytes | None, length: int = 0, stamp: int = 1) -> Step:
    return Step(disk, offset, len(data) if data is not None else length, data, stamp)


STEPS = [
    step(1, 0, b"a" * BLOCK),
    step(2, 512, b"b" * 1024),
    step(1, 2048, b"c" * 4096),
    step(1, 1024, None, 2048),
    step(2, 0, b"d" * 3 * BLOCK),
]


def after(count: int) -> dict[int, Content]:
    contents = {disk: Content(DISK_BYTES) for disk in (1, 2)}
    for done in STEPS[:count]:
        done.apply(contents[done.disk])
    return contents


def observed(contents: dict[int, Content]) -> dict[int, dict[int, bytes]]:
    return {disk: dict(content.blocks) for disk, content in contents.items()}


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
def test_every_prefix_is_legal(count: int) -> None:
    contents = after(0)
    assert settle(contents, STEPS, observed(after(count))) in (
        count - 1,
        count,
    )  # a whole step is all its parts
    assert observed(contents) == observed(after(count))


def test_part_of_the_last_step_is_legal_sector_by_sector() -> None:
    seen = after(4)
    seen[2].write(2 * SECTOR, b"d" * SECTOR, 9)
    seen[2].write(BLOCK, b"d" * BLOCK, 9)
    contents = after(0)
    settle(contents, STEPS, observed(seen))
    assert observed(contents) == observed(seen)


def illegal_states() -> dict[str, dict[int, Content]]:
    skipped = after(0)
    STEPS[1].apply(skipped[2])
    torn = after(4)
    torn[2].write(100, b"d" * 100, 9)
    foreign = after(3)
    foreign[1].write(40 * BLOCK, b"x" * SECTOR, 9)
    two_parts = after(1)
    two_parts[2].write(512, b"b" * SECTOR, 9)
    two_parts[1].write(2048, b"c" * SECTOR, 9)
    return {
        "a skipped step": skipped,
        "a torn sector": torn,
        "foreign data": foreign,
        "two partial steps": two_parts,
    }


@pytest.mark.parametrize("name", illegal_states())
def test_other_states_are_illegal(name: str) -> None:
    with pytest.raises(NoLegalState):
        settle(after(0), STEPS, observed(illegal_states()[name]))


def test_a_lost_durable_step_is_illegal() -> None:
    with pytest.raises(NoLegalState):
        settle(after(2), STEPS[2:], observed(after(1)))


def test_content_follows_a_bytearray() -> None:
    plain, content = bytearray(DISK_BYTES), Content(DISK_BYTES)
    for number in range(200):
        offset = number * 7919 % 500 * SECTOR
        length = min((number * 31 % 40 + 1) * SECTOR, DISK_BYTES - offset)
        data = block_data(("noise", "zero", "text")[number % 3], number, length)
        plain[offset : offset + length] = data
        if number % 3 == 1:
            content.zero(offset, length, number)
        else:
            content.write(offset, data, number)
        assert content.read(0, DISK_BYTES) == plain
    content.resize(3 * SECTOR, 0)
    content.resize(DISK_BYTES, 0)
    assert content.read(0, DISK_BYTES) == bytes(plain[: 3 * SECTOR]) + bytes(DISK_BYTES - 3 * SECTOR)
    assert content.extents(SECTOR, BLOCK) == [Extent(512, 3584, "data"), Extent(4096, 512, "hole")]


def test_stamps_show_torn_and_misplaced_sectors() -> None:
    data = stamped(3, 7, 1024, 2048)
    assert read_stamps(bytes(1024) + data, 0) == [(0, 0)] * 2 + [(3, 7)] * 4
    with pytest.raises(AssertionError, match="sector 2 is a mix"):
        read_stamps(data[:256] + stamped(3, 8, 1024, 512)[256:] + data[512:], 1024)
    with pytest.raises(AssertionError, match="sector 0 holds data of sector 2"):
        read_stamps(data, 0)


def test_made_blocks_are_what_they_claim() -> None:
    blocks = distinct_blocks(10, 1000)
    assert len({blocks[at : at + BLOCK] for at in range(0, len(blocks), BLOCK)}) == 1000
    assert distinct_blocks(11, 1) == blocks[BLOCK : 2 * BLOCK]
    one, other = colliding_blocks(1)
    assert one != other
