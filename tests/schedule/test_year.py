"""A year of schedules, with what can happen in one, against a model that knows only the minutes of the year.

Two daylight-saving changes, a 29th of February, a clock that is set back by less and by more than is waited for, a week of
downtime, days on which every run fails, a locked snapshot.  All with the real catalog and the real engine; only the clock is
the test's.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from blockdev.vmmap.clock import to_text
from tests.schedule.conftest import START, Home
from tests.schedule.minutes import Minutes
from tests.schedule.test_times import is_last_day

ZONE = "Europe/Zurich"
HOUR, DAY = 3600.0, 86400.0
FIRST = datetime.fromtimestamp(START, UTC)

Rule = tuple[str, str, float, Callable[[datetime], bool], bool]  # name, text, kept, local times, follows the hours
DEFAULT: list[Rule] = [
    ("hourly", "hourly :05", 3 * HOUR, lambda t: t.minute == 5, True),
    ("daily", "daily 02:30", 2 * DAY, lambda t: (t.hour, t.minute) == (2, 30), False),
    ("weekly", "weekly sat 07:30", 8 * DAY, lambda t: (t.weekday(), t.hour, t.minute) == (5, 7, 30), False),
]
OWN: list[Rule] = [
    (
        "work",
        "hourly :15 8-18 mon-fri",
        DAY,
        lambda t: t.minute == 15 and 8 <= t.hour <= 18 and t.weekday() < 5,
        False,
    ),
    ("night", "daily 01:45,02:15", 3 * DAY, lambda t: (t.hour, t.minute) in ((1, 45), (2, 15)), False),
    (
        "month",
        "monthly 29,last 02:30",
        45 * DAY,
        lambda t: (t.hour, t.minute) == (2, 30) and (t.day == 29 or is_last_day(t)),
        False,
    ),
]
VMS: dict[str, list[Rule]] = {"plain": DEFAULT, "own": OWN, "bare": []}


@dataclass
class Taken:
    schedule: str
    due: float
    expires: float
    locked_until: float = 0.0


@dataclass
class ModelVM:
    """What one VM has, by the rules of docs/schedules.md."""

    instants: dict[str, list[float]]  # of each schedule, in order
    keep: dict[str, float]
    done: dict[str, float]
    failing: dict[str, bool] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)

    def round(self, now: float, cap: int) -> None:
        dues = []
        for schedule, instants in self.instants.items():
            if self.done[schedule] > now + 2 * HOUR:
                self.done[schedule] = now
            latest = instants[bisect_right(instants, now) - 1] if instants[0] <= now else 0.0
            if latest > self.done[schedule]:
                dues.append((latest, schedule))
        for due, schedule in sorted(dues):
            self.done[schedule] = due
            self.failing[schedule] = len(self.taken) >= cap
            if not self.failing[schedule]:
                self.taken.append(Taken(schedule, due, now + self.keep[schedule]))
        newest = {one.schedule: one for one in self.taken}
        self.taken = [
            one
            for one in self.taken
            if one.expires > now
            or one.locked_until > now
            or (self.failing.get(one.schedule) and newest[one.schedule] is one)
        ]


def model_of(minutes: Minutes) -> dict[str, ModelVM]:
    vms = {}
    for vm, rules in VMS.items():
        instants = {
            name: [instant.timestamp() for instant in minutes.runs(matches, hours)]
            for name, _text, _keep, matches, hours in rules
        }
        keep = {name: keep for name, _text, keep, _matches, _hours in rules}
        vms[vm] = ModelVM(instants, keep, dict.fromkeys(keep, START))
    return vms


def seen(home: Home, vm: str) -> list[tuple[str, str, str]]:
    """Schedule, when it was due, when it expires."""
    rows = home.catalog.snapshots(home.vms.show_vm(vm) and home.catalog.vm(vm).id)  # type: ignore[union-attr]
    return sorted((row.schedule, row.due, row.expires or "") for row in rows if row.schedule and row.due)


def set_up(home: Home) -> None:
    for vm in VMS:
        home.vms.create_vm(vm, [("root", 1 << 20)])
    home.schedules.replace(None, [])
    for name, text, keep, _matches, _hours in DEFAULT:
        home.schedules.put(None, name, {"at": text, "keep_seconds": int(keep), "zone": ZONE})
    home.schedules.replace("own", [])
    for name, text, keep, _matches, _hours in OWN:
        home.schedules.put("own", name, {"at": text, "keep_seconds": int(keep), "zone": ZONE})
    home.schedules.replace("bare", [])
    home.scheduler.round()  # which sees them for the first time


def check_round(home: Home, model: dict[str, ModelVM], cap: int) -> None:
    """A round of both."""
    home.scheduler.round()
    for name, vm in model.items():
        vm.round(home.now, cap)
        expected = sorted((one.schedule, to_text(one.due), to_text(one.expires)) for one in vm.taken)
        assert seen(home, name) == expected, datetime.fromtimestamp(home.now, UTC)


def test_a_year_of_schedules(home: Home) -> None:
    set_up(home)
    minutes = Minutes(ZONE, FIRST - timedelta(days=3), FIRST + timedelta(days=368))
    model = model_of(minutes)
    chosen = random.Random(2028)
    end = START + 366 * DAY
    downtime = (START + 140 * DAY + 5 * HOUR, START + 147 * DAY + 3 * HOUR)
    set_back = {START + 60 * DAY + 10.2 * HOUR: 40 * 60.0, START + 200 * DAY + 3 * HOUR: 3 * DAY}
    failing = (START + 240 * DAY, START + 243 * DAY)
    locked: dict[str, Any] = {}
    while home.now < end:
        step = chosen.choice((600.0, 1800.0, 2400.0, 3600.0, 3 * HOUR)) + chosen.random()
        for moment, back in list(set_back.items()):
            if home.now < moment <= home.now + step:
                del set_back[moment]
                home.now = moment
                check_round(home, model, 256)
                step = -back
        home.now += step
        if downtime[0] < home.now < downtime[1]:
            continue
        if not locked and home.now > START + 30 * DAY:
            newest = home.catalog.snapshots(home.catalog.vm("plain").id)[-1]  # type: ignore[union-attr]
            until = home.now + 20 * DAY
            home.vms.change_snapshot("plain", newest.name, {"locked_until": to_text(until)})
            model["plain"].taken[-1].locked_until = until
            locked["name"] = newest.name
        if chosen.random() < 0.002:
            home.start_control_plane()
        cap = 1 if failing[0] < home.now < failing[1] else 256
        if home.schedules.cap() != cap:
            home.schedules.set_cap(cap)
        check_round(home, model, cap)
    assert not set_back and locked["name"]
    assert any("failed" in event.message for event in home.catalog.events("plain", ["error"], None, 100))
    assert any("works again" in event.message for event in home.catalog.events("plain", ["info"], None, 100))
    assert any("set back" in event.message for event in home.catalog.events("own", ["warning"], None, 100))
    assert home.pool.check() == []
