"""The judge of test_power_cut accepts what a power cut may leave, and nothing else."""

from __future__ import annotations

import pytest

from tests.engine.content import stamped
from tests.engine.model import BLOCK, SECTOR
from tests.guest.power_cut_model import Holding, Lane, check_together

BLOCKS = 6
SIZE = BLOCKS * BLOCK
KNOWN = bytes(SIZE)
DURABLE = 2


def play() -> list[Lane]:
    """Two lanes take turns to write blocks 0, 1, 2, 3; all steps but each lane's last are replied to, two are durable."""
    lanes = [Lane(writer, f"vm/{writer}", 0, SIZE) for writer in (1, 2)]
    clock = iter(range(100))
    for block in range(4):
        for lane in lanes:
            step = lane.begin(block * BLOCK, BLOCK, False, next(clock))
            if block < 3:
                lane.end(step, next(clock))
            lane.durable = min(block + 1, DURABLE)
    return lanes


def content(lane: Lane, *numbers: int) -> bytearray:
    """The disk with those steps done."""
    data = bytearray(SIZE)
    for step in lane.steps:
        if step.number in numbers:
            part = slice(step.offset, step.offset + step.length)
            data[part] = stamped(lane.writer, step.number, step.offset, step.length)
    return data


def check(lanes: list[Lane], *found: bytes) -> None:
    check_together(
        [
            Holding(lane, bytes(data), KNOWN, len(lane.steps), lane.durable, lane.certain)
            for lane, data in zip(lanes, found, strict=True)
        ]
    )


@pytest.mark.parametrize("survivors", [((1, 2), (1, 2)), ((1, 2, 3), (1, 2)), ((1, 2, 3), (1, 2, 3, 4))])
def test_what_was_durable_and_any_prefix_of_the_rest_is_accepted(survivors: tuple[tuple[int, ...], ...]) -> None:
    lanes = play()
    check(lanes, *(content(lane, *numbers) for lane, numbers in zip(lanes, survivors, strict=True)))


@pytest.mark.parametrize("survivors", [((1,), (1, 2)), ((), ()), ((1, 2, 4), (1, 2, 3)), ((1, 2), (1, 2, 3))])
def test_a_lost_step_is_noticed(survivors: tuple[tuple[int, ...], ...]) -> None:
    lanes = play()
    with pytest.raises(AssertionError, match="acknowledged"):
        check(lanes, *(content(lane, *numbers) for lane, numbers in zip(lanes, survivors, strict=True)))


def test_sectors_of_a_step_under_way_may_be_old_or_new() -> None:
    lanes = play()
    torn = content(lanes[0], 1, 2, 3, 4)
    torn[3 * BLOCK : 3 * BLOCK + SECTOR] = bytes(SECTOR)
    check(lanes, torn, content(lanes[1], 1, 2, 3))


@pytest.mark.parametrize("at", [0, 5 * BLOCK])
def test_a_step_that_was_never_begun_is_noticed(at: int) -> None:
    lanes = play()
    found = content(lanes[0], 1, 2)
    found[at : at + BLOCK] = stamped(1, 9, at, BLOCK)
    with pytest.raises(AssertionError, match="acknowledged"):
        check(lanes, found, content(lanes[1], 1, 2))


def test_a_mix_of_two_writes_in_a_sector_is_noticed() -> None:
    lanes = play()
    found = content(lanes[0], 1, 2)
    found[: SECTOR // 2] = stamped(1, 4, 0, SECTOR)[: SECTOR // 2]
    with pytest.raises(AssertionError, match="sector 0 is a mix"):
        check(lanes, found, content(lanes[1], 1, 2))


def test_data_of_another_sector_is_noticed() -> None:
    lanes = play()
    found = content(lanes[0], 1, 2)
    found[:SECTOR] = stamped(1, 1, SECTOR, SECTOR)
    with pytest.raises(AssertionError, match="sector 0 holds data of sector 1"):
        check(lanes, found, content(lanes[1], 1, 2))


def test_what_was_zeroed_stays_zero_and_a_write_with_fua_stays() -> None:
    lane = Lane(1, "vm/1", 0, SIZE)
    for number in range(1, 5):
        lane.end(lane.begin(0, BLOCK, number == 3, 2 * number), 2 * number + 1)
    lane.certain = {2}
    for numbers in ((2,), (3,), (4,)):
        check([lane], content(lane, *numbers) if numbers != (3,) else KNOWN)
    with pytest.raises(AssertionError, match="acknowledged"):
        check([lane], content(lane, 1))
    lane.durable = 3
    with pytest.raises(AssertionError, match="acknowledged"):
        check([lane], content(lane, 2))
