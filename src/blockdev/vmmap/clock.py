"""The control plane's clock: the only place of `vmmap` that asks for the time.

Times are UTC, kept and shown as ISO 8601 with a `Z` and millisecond digits, so that their text sorts as they do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from; tests inject their own."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """ISO 8601 UTC, such as `2026-11-22T15:19:26.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_name(moment: datetime) -> str:
    """The part of a default snapshot name that says when, such as `20261122-151926` (UTC)."""
    return moment.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
