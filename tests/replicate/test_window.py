"""How much is on its way, and what is compressed: enough for a full link, little to lose, no time for what is no use."""

from __future__ import annotations

import heapq
import random

import pytest

from blockdev.replicate.messages import RAW, ZSTD
from blockdev.replicate.packing import Packer
from blockdev.replicate.window import (
    CARRIED_BYTES_MAX,
    CARRIED_SHARE,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    Window,
)

MEBIBYTE = 1 << 20


def run(rate: float, round_trip: float, seconds: float) -> tuple[float, int]:
    """Bytes in a second over a link of this rate, in the second half of the time, and how many were on their way at the most."""
    now, link_is_free = 0.0, 0.0
    window = Window(lambda: now)
    acknowledgements: list[tuple[float, int]] = []
    handled: list[tuple[float, int]] = []
    in_flight_max = 0
    while now < seconds:
        if window.has_room(MEBIBYTE):
            window.sent(MEBIBYTE)
            in_flight_max = max(in_flight_max, window.in_flight_bytes)
            link_is_free = max(link_is_free, now) + MEBIBYTE / rate
            heapq.heappush(acknowledgements, (link_is_free + round_trip, window.sent_bytes))
            continue
        now, count = heapq.heappop(acknowledgements)
        assert window.acknowledged(count)
        handled.append((now, count))
    middle = next(one for one in handled if one[0] >= seconds / 2)
    return (handled[-1][1] - middle[1]) / (handled[-1][0] - middle[0]), in_flight_max


@pytest.mark.parametrize("rate", [1e6, 12.5e6, 125e6, 500e6])
@pytest.mark.parametrize("round_trip", [0.0002, 0.04, 0.1])
def test_a_long_link_is_kept_full_and_little_is_on_its_way(rate: float, round_trip: float) -> None:
    reached, in_flight = run(rate, round_trip, 20.0)
    assert reached >= 0.9 * rate
    once = rate * (round_trip + MEBIBYTE / rate)  # what is on its way in one round trip, with the message itself
    assert in_flight <= max(WINDOW_BYTES_MIN, 2.5 * once + MEBIBYTE, CARRIED_BYTES_MAX)
    assert in_flight <= WINDOW_BYTES_MAX + MEBIBYTE


def test_more_may_be_on_its_way_the_more_a_channel_has_carried_and_never_a_large_part_of_it() -> None:
    window, carried = Window(lambda: 0.0), 0  # a clock that stands still: nothing is known of the link's rate
    rooms = []
    for _ in range(1024):
        window.sent(MEBIBYTE)
        carried += MEBIBYTE
        assert window.acknowledged(carried)
        rooms.append(window.bytes_max)
    assert rooms[0] == WINDOW_BYTES_MIN and rooms == sorted(rooms) and rooms[-1] == CARRIED_BYTES_MAX
    assert all(room <= max(WINDOW_BYTES_MIN, (number + 1) * MEBIBYTE // CARRIED_SHARE) for number, room in enumerate(rooms))


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    window = Window(lambda: 0.0)
    window.sent(100)
    assert not window.acknowledged(101) and window.acknowledged(60) and not window.acknowledged(59)
    assert window.in_flight_bytes == 40 and window.has_room(1) and not window.has_room(1 << 30)


def test_what_does_not_become_smaller_goes_as_it_is_and_what_does_is_compressed() -> None:
    packer, noise, text = Packer(3), random.Random(1).randbytes(MEBIBYTE), b"text" * (MEBIBYTE // 4)
    codec, stored = packer.pack(noise)
    assert codec == RAW and stored is noise
    codec, stored = packer.pack(text)
    assert codec == ZSTD and len(stored) < 1000
    mixed = noise[: MEBIBYTE // 2] + text[: MEBIBYTE // 2]
    codec, stored = packer.pack(mixed)
    assert codec == ZSTD and len(stored) < 0.51 * MEBIBYTE
    assert packer.pack(noise[:4096]) == (RAW, noise[:4096])


def test_a_path_of_level_0_compresses_nothing() -> None:
    text = bytes(MEBIBYTE)
    assert Packer(0).pack(text) == (RAW, text)
