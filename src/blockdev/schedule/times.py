"""When a schedule runs: what a person writes, the local times that it means, and the instants that these are.

Texts, each with days (`mon-fri`, `sat,sun`) behind it if not every day:
  hourly [:MM] [HH-HH]     each hour, or those of a part of the day (both ends run)
  daily HH:MM[,HH:MM...]
  weekly DAYS HH:MM
  monthly DAY[,DAY...] HH:MM      DAY: 1 to 31, or last; a month without that day has no run
  cron MINUTE HOUR DAY MONTH WEEKDAY      as crontab(5): a day of the month and a weekday that are both given are either

When clocks change:
  - A local time that does not come (spring) runs as much later as the clock jumps; one that comes twice (autumn) runs the
    first time: what RFC 5545, 3.3.5 says of such times.  So a daily run is neither lost nor doubled.
  - A schedule of every hour follows the hours that pass: no more of them in spring, each of the doubled ones in autumn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from blockdev.errors import InvalidArgument

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
EVERY_DAY = frozenset(range(7))
EVERY_HOUR = frozenset(range(24))
EVERY_MONTH = frozenset(range(1, 13))
LAST = 0  # as a day of the month: its last one
SEARCH_DAYS_MAX = 366 * 9  # the rarest run is that of a 29th of February, across a century that has none
CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
FORMS = (
    "'hourly :05', 'hourly :05 8-18 mon-fri', 'daily 02:30', 'weekly sat 07:30', 'monthly 1,last 03:00' or 'cron 5 * * * *'"
)


class When(NamedTuple):
    """Local times: each hour and minute of the days that match."""

    times: frozenset[tuple[int, int]]  # hour, minute
    weekdays: frozenset[int] = EVERY_DAY  # 0: Monday
    month_days: frozenset[int] | None = None  # 1 to 31, LAST; None: all
    months: frozenset[int] = EVERY_MONTH
    either_day: bool = False  # a day matches by its weekday or by its place in the month

    def is_on(self, day: date) -> bool:
        """Whether a local day has runs."""
        if day.month not in self.months:
            return False
        weekday = day.weekday() in self.weekdays
        if self.month_days is None:
            return weekday
        is_last = (day + timedelta(days=1)).month != day.month
        in_month = day.day in self.month_days or (is_last and LAST in self.month_days)
        return weekday or in_month if self.either_day else weekday and in_month

    def follows_the_hours(self) -> bool:
        return {hour for hour, _minute in self.times} == EVERY_HOUR


def parse_when(text: str) -> When:
    """InvalidArgument, which says how it is written."""
    words = text.lower().split()
    parsers = {"hourly": _hourly, "daily": _daily, "weekly": _weekly, "monthly": _monthly, "cron": _cron}
    if not words or words[0] not in parsers:
        raise InvalidArgument(f"{text!r} is not a time for a schedule: write {FORMS}")
    try:
        when = parsers[words[0]](words[1:])
    except IndexError:
        raise InvalidArgument(f"{text!r} lacks a time of day: write it like {FORMS}") from None
    except ValueError as error:
        raise InvalidArgument(f"{text!r} is not understood ({error}): write it like {FORMS}") from None
    if next(_days_from(when, date(2000, 1, 1)), None) is None:
        raise InvalidArgument(f"{text!r} never comes")
    return when


def parse_zone(name: str) -> ZoneInfo:
    """InvalidArgument for a time zone that this machine does not know."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgument(f"{name!r} is not a time zone: write one like Europe/Zurich or UTC") from None


def local_zone(link: str = "/etc/localtime", name_file: str = "/etc/timezone") -> str:
    """This machine's time zone, by its name; UTC when it has none.

    In containers the link is often a copy or a mount, which does not say its name; Debian's file does.
    """
    _directory, _found, name = os.path.realpath(link).partition("/zoneinfo/")
    try:
        name = name or Path(name_file).read_text("utf-8").strip()
        return str(parse_zone(name))
    except (OSError, ValueError, InvalidArgument):
        return "UTC"


def _hourly(words: list[str]) -> When:
    minute, hours = 0, EVERY_HOUR
    if words and words[0].startswith(":"):
        minute = _number(words.pop(0)[1:], 0, 59, "a minute")
    if words and words[0][0].isdigit():
        hours = _set(words.pop(0), 0, 23, "an hour")
    return When(frozenset((hour, minute) for hour in hours), _days(words))


def _daily(words: list[str]) -> When:
    return When(frozenset(_clock(one) for one in words[0].split(",")), _days(words[1:]))


def _weekly(words: list[str]) -> When:
    return When(frozenset([_clock(words[1])]), _days(words[:1] + words[2:]))


def _monthly(words: list[str]) -> When:
    days = frozenset(LAST if one == "last" else _number(one, 1, 31, "a day") for one in words[0].split(","))
    return When(frozenset([_clock(words[1])]), _days(words[2:]), days)


def _cron(words: list[str]) -> When:
    if len(words) != 5:
        raise ValueError("cron needs five fields")
    minutes, hours = _field(words[0], 0, 59), _field(words[1], 0, 23)
    days, months = _field(words[2], 1, 31), _field(_numbered(words[3], MONTHS), 1, 12)
    weekdays = frozenset((number - 1) % 7 for number in _field(_numbered(words[4], DAYS), 0, 7))
    both = not words[2].startswith("*") and not words[4].startswith("*")
    times = frozenset((hour, minute) for hour in hours for minute in minutes)
    return When(times, weekdays, None if words[2] == "*" else days, months, both)


def _numbered(text: str, names: Sequence[str]) -> str:
    """A field of cron with the numbers of its names, which begin with 1."""
    return re.sub(r"\b[a-z]+\b", lambda match: str(names.index(match[0]) + 1) if match[0] in names else match[0], text)


def _field(text: str, low: int, high: int) -> frozenset[int]:
    """A field of cron: *, */n, a-b/n, lists."""
    found: set[int] = set()
    for part in text.split(","):
        body, _slash, step = part.partition("/")
        if body == "*":
            first, last = low, high
        else:
            numbers = [_number(one, low, high, "a number") for one in body.split("-")]
            first, last = numbers[0], numbers[-1] if len(numbers) > 1 or not step else high
            if len(numbers) > 2 or last < first:
                raise ValueError(f"{body!r} is no range")
        found.update(range(first, last + 1, _number(step, 1, high or 1, "a step") if step else 1))
    return frozenset(found)


def _set(text: str, low: int, high: int, what: str) -> frozenset[int]:
    """8-18, 8,12,16 or 22-6, which goes round."""
    found: set[int] = set()
    for part in text.split(","):
        numbers = [_number(one, low, high, what) for one in part.split("-")]
        if len(numbers) > 2:
            raise ValueError(f"{part!r} is no range")
        first, last = numbers[0], numbers[-1]
        found.update(range(first, last + 1) if first <= last else [*range(first, high + 1), *range(low, last + 1)])
    return frozenset(found)


def _days(words: list[str]) -> frozenset[int]:
    if not words:
        return EVERY_DAY
    if len(words) > 1:
        raise ValueError(f"{' '.join(words[1:])!r} is too much")
    names = re.sub("|".join(DAYS), lambda match: str(DAYS.index(match[0])), words[0])
    return _set(names, 0, 6, "a day of the week")


def _clock(text: str) -> tuple[int, int]:
    match = CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time of day")
    return int(match[1]), int(match[2])


def _number(text: str, low: int, high: int, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not low <= int(text) <= high:
        raise ValueError(f"{text!r} is not {what} from {low} to {high}")
    return int(text)


def runs(when: When, zone: ZoneInfo, after: float, until: float) -> Iterator[float]:
    """The instants (seconds since 1970) later than `after` and not later than `until`, in order."""
    # local days are looked at from one before: its last times may be shifted into what follows
    first = datetime.fromtimestamp(after, zone).date() - timedelta(days=2)
    latest = after
    for day in _days_from(when, first):
        if datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() - 86400 > until:
            return
        for instant in _instants(when, zone, day):
            if latest < instant <= until:
                latest = instant
                yield instant


def next_run(when: When, zone: ZoneInfo, after: float) -> float:
    """The first instant later than `after`; infinity when there is none for years."""
    return next(runs(when, zone, after, after + SEARCH_DAYS_MAX * 86400.0), float("inf"))


def latest_run(when: When, zone: ZoneInfo, after: float, until: float) -> float | None:
    """The last instant later than `after` and not later than `until`."""
    latest = None
    for latest in runs(when, zone, after, until):  # noqa: B007
        pass
    return latest


def _days_from(when: When, first: date) -> Iterator[date]:
    for number in range(SEARCH_DAYS_MAX):
        day = first + timedelta(days=number)
        if when.is_on(day):
            yield day


@lru_cache(maxsize=4096)
def _instants(when: When, zone: ZoneInfo, day: date) -> tuple[float, ...]:
    """Of one local day, in order, each once."""
    found = set()
    each_hour = when.follows_the_hours()
    for hour, minute in when.times:
        local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
        first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        comes = first.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None)
        if not each_hour:
            found.add(first.timestamp())
        elif comes:
            found.update((first.timestamp(), second.timestamp()))
    return tuple(sorted(found))
