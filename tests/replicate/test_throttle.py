"""The throttle of a path: what is accepted, which rate holds when, and that what goes over real SSH keeps to it."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from blockdev.errors import InvalidArgument
from blockdev.replicate.halt import Halt
from blockdev.replicate.throttle import Bucket, Throttle
from tests.cli.served import until
from tests.replicate.sides import SECONDS_MAX, Pusher, two_sides

MB = 10**6
TRIES_MAX = 3
ZURICH = ZoneInfo("Europe/Zurich")
WORK = {"at": "mon-fri 08:00-18:00", "rate_bytes": 5 * MB}
NIGHT = {"at": "fri 22:00-06:00", "rate_bytes": None}


def throttle(*windows: dict[str, Any], rate: int | None = 50 * MB, zone: str = "Europe/Zurich") -> Throttle:
    return Throttle.from_json({"rate_bytes": rate, "zone": zone, "windows": list(windows)})


def at(*fields: int, zone: ZoneInfo = ZURICH, fold: int = 0) -> float:
    return datetime(*fields, tzinfo=zone, fold=fold).timestamp()


# settings


def test_nothing_is_no_throttle() -> None:
    assert Throttle.from_json({}) == Throttle()
    assert Throttle().rate_at(0) is None


def test_setting_comes_back_from_json() -> None:
    made = throttle(WORK, NIGHT, {"at": "00:00-24:00", "rate_bytes": 10_000})
    assert Throttle.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "has rate_bytes"),
        ({"rate": 1}, "has no rate"),
        ({"rate_bytes": 9999}, "9999 is no rate"),
        ({"rate_bytes": 10**12 + 1}, "is no rate"),
        ({"rate_bytes": True}, "is no rate"),
        ({"rate_bytes": 1e6}, "is no rate"),
        ({"zone": "Mars/Base"}, "'Mars/Base' is not a time zone"),
        ({"zone": "../../etc/passwd"}, "is not a time zone"),
        ({"zone": 5}, "is not a time zone"),
        ({"windows": "mon"}, "at most 32 windows"),
        ({"windows": [WORK] * 33}, "at most 32 windows"),
        ({"windows": ["mon-fri 08:00-18:00"]}, "a window has at and rate_bytes"),
        ({"windows": [{**WORK, "days": "mon"}]}, "a window has no days"),
        ({"windows": [{"rate_bytes": 50_000}]}, "None is no window"),
        ({"windows": [{"at": "08:00", "rate_bytes": None}]}, "'08:00' is no window"),
        ({"windows": [{"at": "mon 08:00-08:00", "rate_bytes": None}]}, "has no minutes in it"),
        ({"windows": [{"at": "24:00-08:00", "rate_bytes": None}]}, "has no minutes in it"),
        ({"windows": [{"at": "08:00-24:01", "rate_bytes": None}]}, "24:01 in window"),
        ({"windows": [{"at": "08:60-09:00", "rate_bytes": None}]}, "08:60 in window"),
        ({"windows": [{"at": "foo 08:00-09:00", "rate_bytes": None}]}, "'foo' in window"),
        ({"windows": [{"at": "mon- 08:00-09:00", "rate_bytes": None}]}, "'mon-' in window"),
        ({"windows": [{"at": "mon 08:00-09:00", "rate_bytes": 5}]}, "5 is no rate"),
        ({"windows": [{"at": "x" * 1000, "rate_bytes": None}]}, "is no window"),
    ],
)
def test_wrong_setting_is_refused_with_what_is_wrong(given: Any, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Throttle.from_json(given)
    assert says in caught.value.message


# which rate holds when


def test_window_begins_and_ends_on_the_minute_in_its_zone() -> None:
    made = throttle(WORK)
    assert made.rate_at(at(2026, 7, 6, 7, 59, 59)) == 50 * MB  # a Monday
    assert made.rate_at(at(2026, 7, 6, 8, 0)) == 5 * MB
    assert made.rate_at(at(2026, 7, 6, 17, 59, 59)) == 5 * MB
    assert made.rate_at(at(2026, 7, 6, 18, 0)) == 50 * MB
    assert made.rate_at(at(2026, 7, 5, 12, 0)) == 50 * MB  # a Sunday


def test_window_over_midnight_is_that_of_the_day_on_which_it_began() -> None:
    made = throttle(NIGHT)
    assert made.rate_at(at(2026, 7, 10, 21, 59)) == 50 * MB  # a Friday
    assert made.rate_at(at(2026, 7, 10, 22, 0)) is None
    assert made.rate_at(at(2026, 7, 11, 5, 59)) is None
    assert made.rate_at(at(2026, 7, 11, 6, 0)) == 50 * MB
    assert made.rate_at(at(2026, 7, 10, 3, 0)) == 50 * MB
    assert made.rate_at(at(2026, 7, 11, 23, 0)) == 50 * MB


def test_first_window_that_fits_decides() -> None:
    lunch = {"at": "mon 12:00-13:00", "rate_bytes": 20 * MB}
    assert throttle(lunch, WORK).rate_at(at(2026, 7, 6, 12, 30)) == 20 * MB
    assert throttle(WORK, lunch).rate_at(at(2026, 7, 6, 12, 30)) == 5 * MB


def test_days_may_go_over_the_end_of_the_week() -> None:
    made = throttle({"at": "sat-mon 00:00-24:00", "rate_bytes": 1 * MB})
    slow = [made.rate_at(at(2026, 7, day, 12, 0)) == 1 * MB for day in range(6, 13)]  # Monday to Sunday
    assert slow == [True, False, False, False, False, True, True]


def test_clocks_that_are_set_forward_and_back_move_the_windows() -> None:
    made = throttle({"at": "sun 02:30-04:00", "rate_bytes": 1 * MB})
    spring = at(2026, 3, 29, 1, 59, 59)  # the next second is 03:00
    assert made.rate_at(spring) == 50 * MB
    assert made.rate_at(spring + 1) == 1 * MB
    assert made.rate_at(spring + 3600) == 1 * MB
    assert made.rate_at(spring + 3601) == 50 * MB
    assert made.rate_at(at(2026, 10, 25, 2, 45)) == 1 * MB  # it is 02:30 twice
    assert made.rate_at(at(2026, 10, 25, 2, 15, fold=1)) == 50 * MB
    assert made.rate_at(at(2026, 10, 25, 2, 45, fold=1)) == 1 * MB


# the bucket, with clocks of the test


class Clocks:
    """Durations and the time of the day, which the test sets."""

    def __init__(self, now: float = 0.0) -> None:
        self.monotonic_now = 5.0
        self.now = now

    def monotonic(self) -> float:
        return self.monotonic_now

    def wall(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.monotonic_now += seconds
        self.now += seconds


def passed(bucket: Bucket, clocks: Clocks, seconds: float, sizes: random.Random | None = None) -> int:
    """Bytes that a greedy writer gets through."""
    end, total = clocks.monotonic_now + seconds, 0
    while clocks.monotonic_now < end:
        if (wait := bucket.wait_seconds()) > 0:
            clocks.advance(wait)
            continue
        size = bucket.piece_bytes if sizes is None else sizes.randint(1, bucket.piece_bytes)
        bucket.take(size)
        total += size
        clocks.advance(1e-5)
    return total


@pytest.mark.parametrize("rate", [10_000, 333_333, 1 * MB, 50 * MB, 400 * MB])
def test_rate_holds_within_five_percent_over_thirty_seconds(rate: int, seed: int) -> None:
    clocks = Clocks()
    bucket = Bucket(throttle(rate=rate), clocks.monotonic, clocks.wall)
    for sizes in (None, random.Random(seed)):
        clocks.advance(100)  # idle: a burst is saved up
        assert passed(bucket, clocks, 30, sizes) == pytest.approx(rate * 30, rel=0.05)


@pytest.mark.parametrize("rate", [1 * MB, 50 * MB])
def test_burst_after_idling_is_a_quarter_of_a_second_at_the_most(rate: int) -> None:
    clocks = Clocks()
    bucket = Bucket(throttle(rate=rate), clocks.monotonic, clocks.wall)
    clocks.advance(3600)
    burst = 0
    while bucket.wait_seconds() == 0:
        burst += bucket.piece_bytes
        bucket.take(bucket.piece_bytes)
    assert 0 < burst <= rate * 0.25


def test_window_switches_on_time_for_who_is_writing() -> None:
    clocks = Clocks(at(2026, 7, 6, 7, 59, 30))
    bucket = Bucket(throttle(WORK, rate=20 * MB), clocks.monotonic, clocks.wall)
    assert passed(bucket, clocks, 30) == pytest.approx(20 * MB * 30, rel=0.02)
    assert passed(bucket, clocks, 30) == pytest.approx(5 * MB * 30, rel=0.02)
    clocks.now = at(2026, 7, 6, 17, 59, 59)
    clocks.advance(1)
    assert passed(bucket, clocks, 30) == pytest.approx(20 * MB * 30, rel=0.02)


def test_slow_window_does_not_outlast_its_end_for_who_waits() -> None:
    """He took a large piece at a low rate, for which he would wait a minute."""
    clocks = Clocks(at(2026, 7, 6, 17, 59, 58))
    bucket = Bucket(throttle({**WORK, "rate_bytes": 10_000}, rate=None), clocks.monotonic, clocks.wall)
    bucket.take(600_000)
    waited = 0.0
    while (wait := bucket.wait_seconds()) > 0:
        clocks.advance(wait)
        waited += wait
    assert waited <= 2.5


def test_change_on_the_fly_holds_from_then_on() -> None:
    clocks = Clocks()
    bucket = Bucket(throttle(rate=50 * MB), clocks.monotonic, clocks.wall)
    passed(bucket, clocks, 5)
    bucket.set(throttle(rate=2 * MB))
    assert passed(bucket, clocks, 30) == pytest.approx(2 * MB * 30, rel=0.05)
    bucket.set(Throttle())
    assert bucket.wait_seconds() == 0 and bucket.rate_bytes is None
    bucket.take(10**9)
    bucket.set(throttle(rate=20 * MB))
    assert passed(bucket, clocks, 30) == pytest.approx(20 * MB * 30, rel=0.05), "what went without a limit was counted"


def test_set_back_clock_of_the_day_stops_nobody() -> None:
    clocks = Clocks(at(2026, 7, 6, 12, 0))
    bucket = Bucket(throttle(rate=20 * MB), clocks.monotonic, clocks.wall)
    passed(bucket, clocks, 5)
    clocks.now -= 86400 * 365
    assert passed(bucket, clocks, 30) == pytest.approx(20 * MB * 30, rel=0.05)


# over SSH


def test_real_transfers_keep_to_the_rate_and_share_it(tmp_path: Path) -> None:
    """One with large messages, one with middle ones; each has its share, and together they have the rate.

    Looked at for five seconds, and again when a busy machine held them up.
    """
    rate = 8 * MB
    with two_sides(tmp_path) as (sender, receiver):
        path = sender.path_to(receiver, throttle=f'{{"rate_bytes": {rate}}}')
        pushers = [Pusher(10**6, 1 << 20, ahead=8), Pusher(10**6, 64_000, ahead=100)]
        halts = [Halt(), Halt()]
        threads = [
            threading.Thread(target=_until_halted, args=(sender, path, *pair)) for pair in zip(pushers, halts, strict=True)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(receiver.doors.machines) == 2, "both to begin")
        time.sleep(1.0)  # past the burst
        seen = [_moved(sender, receiver, 5.0)]
        while len(seen) < TRIES_MAX and not _kept(*seen[-1], rate):
            seen.append(_moved(sender, receiver, 5.0))
        for halt in halts:
            halt.say()
        for thread in threads:
            thread.join(SECONDS_MAX)
    assert _kept(*seen[-1], rate), seen


def _moved(sender: Any, receiver: Any, seconds: float) -> tuple[float, list[int]]:
    """Bytes a second on the wire, and of each receiving machine how many came, while we look."""
    before, shares_before, began = _sent(sender), [m.byte_count for m in receiver.doors.machines], time.monotonic()
    time.sleep(seconds)
    rate = (_sent(sender) - before) / (time.monotonic() - began)
    return rate, [m.byte_count - b for m, b in zip(receiver.doors.machines, shares_before, strict=True)]


def _kept(moved: float, shares: list[int], rate: float) -> bool:
    return moved == pytest.approx(rate, rel=0.05) and 0 < max(shares) < 2 * min(shares)


def _sent(sender: Any) -> int:
    return int(sender.sent_bytes)


def _until_halted(sender: Any, path: Any, pusher: Pusher, halt: Halt) -> None:
    from blockdev.replicate.halt import Halted

    with pytest.raises(Halted):
        sender.transport.run(path, pusher, halt)


def test_small_messages_are_not_held_up_by_the_throttle(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (sender, receiver):
        path = sender.path_to(receiver, throttle='{"rate_bytes": 10000}')
        big, halt = Pusher(100, 1 << 20), Halt()
        thread = threading.Thread(target=_until_halted, args=(sender, path, big, halt))
        thread.start()
        assert receiver.doors.opened.wait(SECONDS_MAX)
        small, began = Pusher(20, 100, ahead=1), time.monotonic()
        sender.transport.run(path, small, Halt())
        assert small.is_done and time.monotonic() - began < 120.0  # behind the big ones it would be half an hour
        halt.say()
        thread.join(SECONDS_MAX)


def test_throttle_that_is_lifted_frees_who_waits(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (sender, receiver):
        path = sender.path_to(receiver, throttle='{"rate_bytes": 10000}')
        pusher = Pusher(20, 1 << 20)
        thread = threading.Thread(target=sender.transport.run, args=(path, pusher, Halt()))
        thread.start()
        assert receiver.doors.opened.wait(SECONDS_MAX)
        assert not pusher.is_done
        sender.transport.set_throttle(1, Throttle())
        thread.join(SECONDS_MAX)
        assert pusher.is_done


def test_utc_is_the_zone_of_a_throttle_that_names_none() -> None:
    made = Throttle.from_json({"windows": [{"at": "08:00-09:00", "rate_bytes": 50_000}]})
    assert made.rate_at(datetime(2026, 7, 6, 8, 30, tzinfo=UTC).timestamp()) == 50_000
