"""Schedules as values: when, how consistent, kept how long.  The default set, and the one that a VM has instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, get_args
from zoneinfo import ZoneInfo

from blockdev.constants import DURATION_SECONDS_MAX, KEEP_SECONDS_MIN
from blockdev.errors import InvalidArgument
from blockdev.quiesce.limits import LIMIT_SECONDS, LIMIT_SECONDS_MAX
from blockdev.schedule.times import When, parse_when, parse_zone
from blockdev.vmmap.model import Consistency, IfNotFrozen
from blockdev.vmmap.names import check_name

SCHEDULES_MAX = 3  # of one VM
NAME_CHARACTERS_MAX = 32  # the time follows it in the names of snapshots
HOUR, DAY = 3600, 86400


@dataclass(frozen=True)
class Schedule:
    """One schedule; times are of its zone."""

    name: str
    at: str  # such as "daily 02:30 mon-fri" or "cron 5 * * * *": see docs/schedules.md
    keep_seconds: int
    zone: str = "UTC"  # of the IANA database
    consistency: Consistency = "crash"
    if_not_frozen: IfNotFrozen = "crash"  # when a guest cannot be frozen: take one all the same, or fail
    replicate: bool = True  # over the paths that the VM is protected over, if there are any
    keep_remote_seconds: int | None = None  # None: as here
    freeze_seconds_max: int = LIMIT_SECONDS  # a guest is thawed then, whatever its snapshot does

    def to_body(self) -> dict[str, Any]:
        """What the catalog keeps: without a limit that is the default, which earlier builds do not know."""
        body = asdict(self)
        if self.freeze_seconds_max == LIMIT_SECONDS:
            del body["freeze_seconds_max"]
        return body

    def remote_seconds(self) -> int | None:
        """How long the other end of a path keeps its snapshots; None: it sends none."""
        return (self.keep_remote_seconds or self.keep_seconds) if self.replicate else None

    def when(self) -> tuple[When, ZoneInfo]:
        return _when(self.at, self.zone)


def shipped(zone: str) -> list[Schedule]:
    """What a new home has."""
    return [
        Schedule("hourly", "hourly :05", 3 * HOUR, zone),
        Schedule("daily", "daily 02:30", 2 * DAY, zone),
        Schedule("weekly", "weekly sat 07:30", 8 * DAY, zone),
    ]


def check_schedule(schedule: Schedule) -> None:
    """InvalidArgument when it says what cannot be."""
    check_name("schedule", schedule.name)
    if len(schedule.name) > NAME_CHARACTERS_MAX:
        raise InvalidArgument(f"schedule {schedule.name}: a schedule's name may have {NAME_CHARACTERS_MAX} characters")
    schedule.when()
    for keep in (schedule.keep_seconds, schedule.keep_remote_seconds):
        if keep is not None and not KEEP_SECONDS_MIN <= keep <= DURATION_SECONDS_MAX:
            raise InvalidArgument(f"schedule {schedule.name}: a snapshot is kept for a minute to a hundred years")
    if schedule.consistency not in get_args(Consistency):
        raise InvalidArgument(f"schedule {schedule.name}: consistency is crash or vm, not {schedule.consistency!r}")
    if schedule.if_not_frozen not in get_args(IfNotFrozen):
        raise InvalidArgument(f"schedule {schedule.name}: without a frozen guest it can take a crash snapshot, or fail")
    if not 1 <= schedule.freeze_seconds_max <= LIMIT_SECONDS_MAX:
        raise InvalidArgument(f"schedule {schedule.name}: a guest can be frozen for 1 to {LIMIT_SECONDS_MAX} s")


def check_set(schedules: Sequence[Schedule]) -> None:
    """InvalidArgument: too many, or two of one name."""
    for schedule in schedules:
        check_schedule(schedule)
    if len(schedules) > SCHEDULES_MAX:
        names = ", ".join(schedule.name for schedule in schedules[:-1])
        raise InvalidArgument(f"a VM can have {SCHEDULES_MAX} schedules, and has {names}: take one away first (schedule set VM NAME --remove)")
    if len({schedule.name for schedule in schedules}) < len(schedules):
        raise InvalidArgument("two schedules have one name")


@lru_cache(maxsize=1024)
def _when(at: str, zone: str) -> tuple[When, ZoneInfo]:
    return parse_when(at), parse_zone(zone)
