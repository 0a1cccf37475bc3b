"""How many bytes a second a path may carry, at which hours; and the bucket that holds the path to it.

JSON, column `path.throttle`: {"rate_bytes": 50000000 or null, "zone": "Europe/Zurich", "windows": [{"at": "mon-fri
08:00-18:00", "rate_bytes": 5000000 or null}, ...]}; null: no limit; {} is no throttle.  The first window that the local time
of the zone is in decides, outside of all rate_bytes.  A window that ends before it begins goes over midnight, and is that of
the day on which it began.  Local times are those that clocks show: an hour that comes twice is twice in its windows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from blockdev.errors import InvalidArgument

WINDOWS_MAX = 32
RATE_BYTES_MIN, RATE_BYTES_MAX = 10_000, 10**12
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
DAY_MINUTES = 24 * 60
FORM = "write it like 'mon-fri 08:00-18:00', 'sat,sun 00:00-24:00' or '22:00-06:00'"
_AT = re.compile(r"(?:([a-z,-]+) )?(\d\d?):(\d\d)-(\d\d?):(\d\d)")

BURST_SECONDS = 0.2  # of a path that was idle; with a piece of PIECE_SECONDS it stays below a quarter of a second
PIECE_SECONDS = 0.04
PIECE_BYTES_MIN = 1 << 12
PIECE_BYTES_MAX = 1 << 16  # under a throttle: those whose messages are larger have equal shares
PIECE_BYTES_FREE = 1 << 18  # without one
WAIT_SECONDS_MAX = 0.5  # after that the rate is looked up again: a window may have begun, the clock may have been set


@dataclass(frozen=True)
class Window:
    """A part of the days with a rate of its own."""

    days: frozenset[int]  # on which it begins; 0: Monday
    first_minute: int  # of the day
    end_minute: int  # not in it; up to DAY_MINUTES, below first_minute when it goes over midnight
    rate_bytes: int | None  # in a second; None: no limit
    at: str  # as it was written

    def is_in(self, local: datetime) -> bool:
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.first_minute < self.end_minute:
            return day in self.days and self.first_minute <= minute < self.end_minute
        evening = day in self.days and minute >= self.first_minute
        return evening or ((day - 1) % 7 in self.days and minute < self.end_minute)

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "rate_bytes": self.rate_bytes}


@dataclass(frozen=True)
class Throttle:
    """The setting of a path."""

    rate_bytes: int | None = None  # in a second; None: no limit
    windows: tuple[Window, ...] = ()
    zone: str = "UTC"

    @classmethod
    def from_json(cls, value: Any) -> Throttle:
        """InvalidArgument, which says what is wrong."""
        if not isinstance(value, dict):
            raise InvalidArgument("a throttle has rate_bytes, zone and windows")
        _check_fields(value, {"rate_bytes", "zone", "windows"}, "a throttle")
        windows = value.get("windows") or []
        if not isinstance(windows, list) or len(windows) > WINDOWS_MAX:
            raise InvalidArgument(f"a throttle has at most {WINDOWS_MAX} windows")
        zone = value.get("zone") or "UTC"
        _check_zone(zone)
        return cls(_rate(value.get("rate_bytes")), tuple(_window(one) for one in windows), zone)

    def to_json(self) -> dict[str, Any]:
        return {"rate_bytes": self.rate_bytes, "zone": self.zone, "windows": [one.to_json() for one in self.windows]}

    def rate_at(self, now_seconds: float) -> int | None:
        """Bytes a second at an instant; None: as many as there may be."""
        if self.windows:
            local = datetime.fromtimestamp(now_seconds, ZoneInfo(self.zone))
            for window in self.windows:
                if window.is_in(local):
                    return window.rate_bytes
        return self.rate_bytes


def _check_fields(value: dict[Any, Any], known: set[str], what: str) -> None:
    unknown = sorted(str(field) for field in set(value) - known)
    if unknown:
        raise InvalidArgument(f"{what} has no {unknown[0]}: it has {', '.join(sorted(known))}")


def _check_zone(name: Any) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise InvalidArgument(f"{name!r} is not a time zone: write one like Europe/Zurich or UTC") from None


def _rate(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not RATE_BYTES_MIN <= value <= RATE_BYTES_MAX:
        raise InvalidArgument(f"{value!r} is no rate: {RATE_BYTES_MIN} to {RATE_BYTES_MAX} bytes a second, or none for no limit")
    return value


def _window(value: Any) -> Window:
    if not isinstance(value, dict):
        raise InvalidArgument("a window has at and rate_bytes")
    _check_fields(value, {"at", "rate_bytes"}, "a window")
    at = value.get("at")
    found = _AT.fullmatch(" ".join(at.lower().split())) if isinstance(at, str) and len(at) <= 100 else None
    if not isinstance(at, str) or found is None:
        raise InvalidArgument(f"{at!r} is no window: {FORM}")
    first, end = _minute(found[2], found[3], at), _minute(found[4], found[5], at)
    if first in (end, DAY_MINUTES):
        raise InvalidArgument(f"window {at!r} has no minutes in it: {FORM}")
    return Window(_days(found[1], at), first, end, _rate(value.get("rate_bytes")), found[0])


def _minute(hour: str, minute: str, at: str) -> int:
    count = int(hour) * 60 + int(minute)
    if int(minute) > 59 or count > DAY_MINUTES:
        raise InvalidArgument(f"{hour}:{minute} in window {at!r} is no time of a day")
    return count


def _days(text: str | None, at: str) -> frozenset[int]:
    if text is None:
        return EVERY_DAY
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise InvalidArgument(f"{part!r} in window {at!r} is no day of the week: {FORM}")
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 if dash else 0  # sat-mon is three days
        days.update((start + place) % 7 for place in range(length + 1))
    return frozenset(days)


class Bucket:
    """Tells when the next bytes of a path may go.  One thread at a time.

    What goes is taken from a level that fills at the rate, up to BURST_SECONDS of it; who finds it above zero may go, and
    what he takes too much the next one waits for.  So the rate holds whatever the sizes, and nobody waits for a full bucket.
    """

    def __init__(self, throttle: Throttle, monotonic: Callable[[], float], now: Callable[[], float]) -> None:
        """monotonic, now: seconds, of durations and of the day."""
        self._throttle = throttle
        self._monotonic = monotonic
        self._now = now
        self._rate = throttle.rate_at(now())
        self._level = 0.0
        self._filled_at = monotonic()

    def set(self, throttle: Throttle) -> None:
        """From now on; what was taken too much under the other rate is not forgotten, but waited for at the new one."""
        self._fill()
        self._throttle = throttle
        self._look()

    @property
    def rate_bytes(self) -> int | None:
        """In force now."""
        self._look()
        return self._rate

    @property
    def piece_bytes(self) -> int:
        """How much to write at once at the most, so that the path's transfers take turns and the rate is smooth."""
        self._look()
        if self._rate is None:
            return PIECE_BYTES_FREE
        return min(max(int(self._rate * PIECE_SECONDS), PIECE_BYTES_MIN), PIECE_BYTES_MAX)

    def wait_seconds(self) -> float:
        """How long to wait before asking again; 0: go, and tell `take`."""
        self._fill()
        self._look()
        if self._rate is None or self._level > -1:  # less than a byte is nothing to wait for
            return 0.0
        return min(-self._level / self._rate, WAIT_SECONDS_MAX)

    def take(self, byte_count: int) -> None:
        """So many bytes go, allowed or not."""
        if self._rate is not None:
            self._level -= byte_count

    def _look(self) -> None:
        """The rate may be another by now."""
        rate = self._throttle.rate_at(self._now())
        if rate != self._rate:
            self._rate = rate
            self._level = min(self._level, 0.0)  # a burst of the rate before would be none of this one
            if rate is None:
                self._level = 0.0

    def _fill(self) -> None:
        now = self._monotonic()
        if self._rate is not None:
            filled = self._level + (now - self._filled_at) * self._rate
            self._level = min(filled, self._rate * BURST_SECONDS)
        self._filled_at = now
