"""When schedules run: against a walk over every minute of a year, where clocks jump, and where texts are wrong."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest

from blockdev.errors import InvalidArgument
from blockdev.schedule import times
from blockdev.schedule.times import latest_run, next_run, parse_when, parse_zone, runs
from tests.schedule.minutes import Minutes

Match = Callable[[datetime], bool]
FIRST, END = datetime(2027, 12, 20, tzinfo=UTC), datetime(2029, 1, 10, tzinfo=UTC)  # 2028 has a 29th of February


def is_last_day(local: datetime) -> bool:
    return local.day == calendar.monthrange(local.year, local.month)[1]


RULES: dict[str, tuple[Match, bool]] = {
    "hourly": (lambda t: t.minute == 0, True),
    "hourly :05": (lambda t: t.minute == 5, True),
    "hourly :30 sat,sun": (lambda t: t.minute == 30 and t.weekday() >= 5, True),
    "hourly :15 8-18 mon-fri": (lambda t: t.minute == 15 and 8 <= t.hour <= 18 and t.weekday() < 5, False),
    "hourly :00 22-3": (lambda t: t.minute == 0 and (t.hour >= 22 or t.hour <= 3), False),
    "daily 02:30": (lambda t: (t.hour, t.minute) == (2, 30), False),
    "daily 01:30,02:00,03:00,12:45": (
        lambda t: (t.hour, t.minute) in ((1, 30), (2, 0), (3, 0), (12, 45)),
        False,
    ),
    "daily 00:15 sun": (lambda t: (t.hour, t.minute, t.weekday()) == (0, 15, 6), False),
    "weekly sat 07:30": (lambda t: (t.hour, t.minute, t.weekday()) == (7, 30, 5), False),
    "weekly fri-mon 02:15": (lambda t: (t.hour, t.minute) == (2, 15) and t.weekday() in (4, 5, 6, 0), False),
    "monthly 1,15,last 03:00": (
        lambda t: (t.hour, t.minute) == (3, 0) and (t.day in (1, 15) or is_last_day(t)),
        False,
    ),
    "monthly 29,31 02:30": (lambda t: (t.hour, t.minute) == (2, 30) and t.day in (29, 31), False),
    "cron */20 * * * *": (lambda t: t.minute % 20 == 0, True),
    "cron 5 1-5/2 * * 0": (lambda t: t.minute == 5 and t.hour in (1, 3, 5) and t.weekday() == 6, False),
    "cron 30 2 13 * fri": (
        lambda t: (t.hour, t.minute) == (2, 30) and (t.day == 13 or t.weekday() == 4),
        False,
    ),
    "cron 0 0 29 2 *": (lambda t: (t.hour, t.minute, t.day, t.month) == (0, 0, 29, 2), False),
    "cron 15 3 1 jan,mar-may mon": (
        lambda t: (t.hour, t.minute) == (3, 15) and t.month in (1, 3, 4, 5) and (t.day == 1 or t.weekday() == 0),
        False,
    ),
    "cron 10,40 2 * 3,10 7": (
        lambda t: t.hour == 2 and t.minute in (10, 40) and t.month in (3, 10) and t.weekday() == 6,
        False,
    ),
}
ZONES = (
    "UTC",
    "Europe/Zurich",
    "America/New_York",
    "Australia/Lord_Howe",  # jumps by half an hour
    "America/Havana",  # at midnight
    "Asia/Kathmandu",  # 5:45
)


@cache
def minutes_of(zone: str) -> Minutes:
    return Minutes(zone, FIRST, END)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", RULES)
def test_a_year_of_runs_is_what_a_walk_over_its_minutes_finds(text: str, zone: str) -> None:
    expected = minutes_of(zone).runs(*RULES[text])
    margin = timedelta(days=2).total_seconds()
    found = runs(parse_when(text), parse_zone(zone), FIRST.timestamp() + margin, END.timestamp() - margin)
    inside = [
        one
        for one in expected
        if FIRST.timestamp() + margin < one.timestamp() <= END.timestamp() - margin
    ]
    assert [datetime.fromtimestamp(instant, UTC) for instant in found] == inside and inside


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", ["daily 02:30", "monthly last 03:00"])
def test_a_daily_run_is_neither_lost_nor_doubled(text: str, zone: str) -> None:
    found = list(runs(parse_when(text), parse_zone(zone), FIRST.timestamp(), END.timestamp()))
    days = [datetime.fromtimestamp(instant, parse_zone(zone)).date() for instant in found]
    assert len(set(days)) == len(days)
    assert text.startswith("monthly") or len(days) in ((END - FIRST).days, (END - FIRST).days + 1)


@pytest.mark.parametrize("text", ["daily 02:30", "hourly :05", "cron 0 0 29 2 *"])
def test_next_and_latest_run_are_those_of_the_walk(text: str) -> None:
    when, zone = parse_when(text), parse_zone("Europe/Zurich")
    all_runs = [one.timestamp() for one in minutes_of("Europe/Zurich").runs(*RULES[text])]
    for number in range(0, 380 * 24, 17):
        now = (FIRST + timedelta(hours=number, seconds=number % 50)).timestamp()
        later = [instant for instant in all_runs if instant > now]
        if later:
            assert next_run(when, zone, now) == later[0]
        earlier = [instant for instant in all_runs if now - 3 * 86400 < instant <= now]
        assert latest_run(when, zone, now - 3 * 86400, now) == (earlier[-1] if earlier else None) or number < 72
    assert all_runs[0] not in runs(when, zone, all_runs[0], all_runs[0] + 1)
    assert all_runs[0] in runs(when, zone, all_runs[0] - 1, all_runs[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "often",
        "daily",
        "daily 24:00",
        "daily 2.30",
        "daily 02:30 someday",
        "daily 02:30 mon tue",
        "hourly :60",
        "hourly :05 8-25",
        "weekly 07:30",
        "weekly sat",
        "monthly 32 03:00",
        "monthly 0 03:00",
        "monthly 30 03:00 whenever",
        "cron * * * *",
        "cron * * * * * *",
        "cron 60 * * * *",
        "cron */0 * * * *",
        "cron 5-1 * * * *",
        "cron 0 0 30 2 *",
        "cron 0 0 * * 8",
        "cron 0 0 1 1feb *",
        "cron 0 0 1 mon *",
        "daily ٠٢:30",
        "hourly :05 " + "9" * 5000,
    ],
)
def test_a_time_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_when(text)


def test_a_zone_that_is_none_is_refused() -> None:
    for name in ("Mars/Olympus", "", "../../etc/passwd", "/etc/localtime", "Europe"):
        with pytest.raises(InvalidArgument):
            parse_zone(name)


@pytest.mark.parametrize(
    ("target", "text", "zone"),
    [
        ("/usr/share/zoneinfo/Europe/Zurich", None, "Europe/Zurich"),
        ("/usr/share/zoneinfo/Europe/Zurich", "Asia/Tokyo", "Europe/Zurich"),
        (None, "Asia/Tokyo", "Asia/Tokyo"),
        (None, None, "UTC"),
        (None, "Mars/Olympus", "UTC"),
        (None, "", "UTC"),
    ],
)
def test_a_machines_zone_is_what_its_link_says_or_else_its_file(tmp_path: Path, target: str | None, text: str | None, zone: str) -> None:
    link, file = tmp_path / "localtime", tmp_path / "timezone"
    if target is None:
        link.write_bytes(b"TZif2")
    else:
        link.symlink_to(target)
    if text is not None:
        file.write_text(f"{text}\n")
    assert times.local_zone(str(link), str(file)) == zone


def test_a_day_is_computed_once_however_many_ask() -> None:
    """A thousand VMs with a schedule of every minute made the control plane stand still."""
    times._instants.cache_clear()
    when, zone = parse_when("cron * * * * *"), parse_zone("Europe/Zurich")
    for number in range(1000):
        assert next_run(when, zone, FIRST.timestamp() + number) % 60 == 0
    assert times._instants.cache_info().misses < 5
