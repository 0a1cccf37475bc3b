"""A model of schedules' times that walks all minutes of a span, and knows nothing of how blockdev computes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)


class Minutes:
    """Each minute of a span: the instants of each local time, and local times that never came."""

    def __init__(self, zone: str, first: datetime, end: datetime) -> None:
        """first, end: UTC, whole minutes."""
        self.first, self.end = first, end
        self.instants: dict[datetime, list[datetime]] = {}  # by local time, without a zone
        offset_before = {}
        instant, previous = first, None
        while instant < end:
            local = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            self.instants.setdefault(local, []).append(instant)
            if previous is not None and local > previous + MINUTE:
                missing = previous + MINUTE
                while missing < local:
                    offset_before[missing] = instant - MINUTE - previous.replace(tzinfo=UTC)
                    missing += MINUTE
            previous = local
            instant += MINUTE
        self.skipped = {local: local.replace(tzinfo=UTC) + offset for local, offset in offset_before.items()}

    def runs(self, matches, every_hour: bool) -> list[datetime]:  # type: ignore[no-untyped-def]
        """matches(local time) -> whether a schedule names it."""
        found = set()
        for local, instants in self.instants.items():
            if matches(local):
                found.update(instants if every_hour else instants[:1])
        if not every_hour:
            found.update(instant for local, instant in self.skipped.items() if matches(local))
        return sorted(instant for instant in found if self.first <= instant < self.end)
