"""Schedules in forms: a fixed number of rows, as many as a VM can have; a row without a name is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockdev.errors import InvalidArgument
from blockdev.quiesce.limits import LIMIT_SECONDS
from blockdev.schedule.rules import SCHEDULES_MAX
from blockdev.web.forms import Form
from blockdev.written import parse_duration, parse_keep, show_period

CONSISTENCIES = (
    ("crash", "as after a power cut"),
    ("vm", "guest frozen, else as after a power cut"),
    ("vm-only", "guest frozen, else none"),
)
AT_EXAMPLES = ("hourly :05", "hourly :05 8-18 mon-fri", "daily 02:30", "weekly sat 07:30", "monthly 1,last 03:00", "cron 5 */2 * * mon")


def rows(schedules: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the fields of each row show, by the names without the row's number."""
    shown = [_row(one) for one in schedules[:SCHEDULES_MAX]]
    blank = {"name": "", "at": "", "keep": "", "zone": "", "consistency": "crash", "freeze": "", "replicate": "yes", "keep_remote": ""}
    return shown + [blank] * (SCHEDULES_MAX - len(shown))


def _row(schedule: Mapping[str, Any]) -> dict[str, str]:
    keep_remote = schedule["keep_remote_seconds"]
    only_frozen = schedule["consistency"] == "vm" and schedule["if_not_frozen"] == "fail"
    return {
        "name": schedule["name"],
        "at": schedule["at"],
        "keep": show_period(schedule["keep_seconds"]),
        "zone": schedule["zone"],
        "consistency": "vm-only" if only_frozen else schedule["consistency"],
        "freeze": "" if schedule["freeze_seconds_max"] == LIMIT_SECONDS else show_period(schedule["freeze_seconds_max"]),
        "replicate": "yes" if schedule["replicate"] else "no",
        "keep_remote": "" if keep_remote is None else show_period(keep_remote),
    }


def read_rows(form: Form) -> list[dict[str, Any]]:
    """The bodies of the schedules that were filled in.  InvalidArgument."""
    found = []
    for number in range(SCHEDULES_MAX):
        name = form.get(f"name-{number}")
        if name is not None:
            found.append(_read_row(form, number, name))
        elif form.get(f"at-{number}") or form.get(f"keep-{number}"):
            raise InvalidArgument(f"schedule {number + 1} has no name: give it one, or empty its other fields")
    return found


def _read_row(form: Form, number: int, name: str) -> dict[str, Any]:
    consistency = form.get(f"consistency-{number}") or "crash"
    freeze = form.get(f"freeze-{number}")
    keep_remote, zone = form.get(f"keep_remote-{number}"), form.get(f"zone-{number}")
    return {
        "name": name,
        "at": form.need(f"at-{number}", f"when schedule {name} runs"),
        "keep_seconds": parse_keep(form.need(f"keep-{number}", f"how long schedule {name} keeps its snapshots")),
        **({"zone": zone} if zone else {}),
        "consistency": "crash" if consistency == "crash" else "vm",
        "if_not_frozen": "fail" if consistency == "vm-only" else "crash",
        "freeze_seconds_max": LIMIT_SECONDS if freeze is None else parse_duration(freeze),
        "replicate": form.get(f"replicate-{number}") != "no",
        "keep_remote_seconds": None if keep_remote is None else parse_keep(keep_remote),
    }


def tell(schedules: Sequence[Mapping[str, Any]]) -> list[str]:
    """hourly: hourly :05, kept 3h."""
    return [f"{one['name']}: {one['at']} ({one['zone']}), kept {show_period(one['keep_seconds'])}" for one in schedules]
