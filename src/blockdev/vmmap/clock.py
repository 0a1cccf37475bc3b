"""How the VM operations write the time down.  The time itself comes from a `Clock` that the service is given.

Times are UTC, kept and shown as ISO 8601 with a `Z` and millisecond digits, so that their text sorts as they do.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], float]  # seconds since 1970, UTC: blockdev.clock.now_seconds, or a test's own


def to_text(moment: float) -> str:
    """ISO 8601 UTC, such as `2026-11-22T15:19:26.123Z`."""
    return text_of(datetime.fromtimestamp(moment, UTC))


def text_of(moment: datetime) -> str:
    """The same of a moment that says its time zone."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(maxsize=65536)
def seconds_of(text: str) -> float:
    """Seconds since 1970 of a time that was written so."""
    return datetime.fromisoformat(text).timestamp()


def to_name(moment: float) -> str:
    """The part of a default snapshot name that says when, such as `20261122-151926` (UTC)."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y%m%d-%H%M%S")
