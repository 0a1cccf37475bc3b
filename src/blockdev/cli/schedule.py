"""blockdevctl schedule: when snapshots are taken by themselves, and how long they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns
from blockdev.cli.session import Noun, Session, pass_session
from blockdev.cli.snapshot import consistency_option, freeze_limit_option, if_not_frozen_option, show_terms
from blockdev.cli.vm import show_disks
from blockdev.errors import InvalidArgument
from blockdev.quiesce.limits import LIMIT_SECONDS
from blockdev.vmmap.names import check_name
from blockdev.written import show_count, show_period

Function = TypeVar("Function", bound=Callable[..., Any])
OPTIONS = "--at, --keep, --zone, --consistency, --if-not-frozen, --freeze-limit, --replicate or --keep-remote"

_OPTIONS = (
    click.option("--at", metavar="TEXT", help="'hourly :05', 'daily 02:30', 'weekly sat 07:30', 'monthly 1 03:00', 'cron 5 * * * *'."),
    click.option("--keep", "keep_seconds", type=values.KEEP, metavar="DURATION", help="How long its snapshots are kept."),
    click.option("--zone", metavar="ZONE", help="Of --at, like Europe/Zurich (default: this machine's)."),
    consistency_option,
    if_not_frozen_option,
    freeze_limit_option,
    click.option("--replicate/--no-replicate", default=None, help="Whether they are sent where the VM is protected (default: yes)."),
    click.option(
        *("--keep-remote", "keep_remote_seconds"),
        type=values.KEEP_OR_SAME,
        metavar="DURATION|same",
        help="How long they are kept there (default: the same as here).",
    ),
    click.option("--remove", is_flag=True, help="Take the schedule away; its snapshots stay until they expire."),
)


def schedule_options(function: Function) -> Function:
    """What can be said of one schedule."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group(cls=Noun)
def schedule() -> None:
    """Snapshots that are taken, and deleted again, by themselves."""


@schedule.command()
@click.argument("vm", type=values.VM, required=False)
@pass_session
def show(session: Session, vm: str | None) -> None:
    """Show the schedules of a VM, or the default ones."""
    found = session.client.get(_path(vm))
    session.show(found, lambda: _tell_set(found))


@schedule.command(name="set")
@click.argument("vm", type=values.VM)
@click.argument("name", required=False, metavar="[NAME]")
@schedule_options
@click.option("--none", is_flag=True, help="The VM has no schedules.")
@click.option("--default", is_flag=True, help="The VM has the default schedules again.")
@pass_session
def set_(session: Session, vm: str, name: str | None, remove: bool, none: bool, default: bool, **given: Any) -> None:
    """Add or change one schedule of a VM, or all of them.

    The VM's own set begins as a copy of the default one.
    """
    if not default:
        _change(session, vm, name, remove, none, given)
        return
    if name or remove or none or _named(given):
        raise InvalidArgument("--default stands alone: schedule set VM --default")
    found = session.client.delete(_path(vm))
    session.show(found, lambda: _tell_set(found))


@schedule.command(name="default")
@click.argument("name", required=False, metavar="[NAME]")
@schedule_options
@click.option("--none", is_flag=True, help="There are no default schedules.")
@pass_session
def default_(session: Session, name: str | None, remove: bool, none: bool, **given: Any) -> None:
    """Show the default schedules, or change one: for all VMs that have none of their own."""
    if name or remove or none or _named(given):
        _change(session, None, name, remove, none, given)
        return
    found = session.client.get(_path(None))
    session.show(found, lambda: _tell_set(found))


@schedule.command()
@click.argument("vm", type=values.VM)
@click.option("--for", "seconds", type=values.DURATION, default="1d", show_default=True, metavar="DURATION", help="From now.")
@pass_session
def preview(session: Session, vm: str, seconds: int) -> None:
    """List the snapshots that will be taken of a VM if nothing fails."""
    found = session.client.get(f"{_path(vm)}/preview", seconds=seconds)

    def tell() -> None:
        paths = ", ".join(found["paths"])
        rows = [
            [run["due"], run["schedule"], run["kept_until"], run["consistency"], *([_kept_there(run)] if paths else [])]
            for run in found["runs"]
        ]
        print_columns(["DUE", "SCHEDULE", "KEPT UNTIL", "CONSISTENCY", *([f"KEPT ON {paths} FOR"] if paths else [])], rows)
        click.echo(f"{show_count(len(rows), 'snapshot')} until {found['until']}, at most {found['kept_at_most']} of them at one time")
        if found["cap_reached"]:
            click.echo(
                f"from {found['cap_reached']} on there are as many as the cap allows, {found['scheduled_snapshots_max']}, and runs fail: "
                "keep them for a shorter time, or raise it with blockdevctl schedule cap"
            )

    session.show(found, tell)


@schedule.command()
@click.argument("vm", type=values.VM)
@click.argument("name")
@pass_session
def run(session: Session, vm: str, name: str) -> None:
    """Take the snapshot of a schedule now, as if it were due."""
    made = session.client.post(f"{_path(vm)}/{_checked(name)}/run")
    session.say(made, f"took snapshot {vm}@{made['name']} of {show_disks(made['disks'])}{show_terms(made)}")


@schedule.command()
@click.argument("count", metavar="[N]", type=int, required=False)
@pass_session
def cap(session: Session, count: int | None) -> None:
    """Show or say how many snapshots of schedules a VM may have; schedules take no more, and say so in the events."""
    if count is None:
        found = session.client.get("/schedule-settings")
    else:
        found = session.client.patch("/schedule-settings", {"scheduled_snapshots_max": count})
    most = found["scheduled_snapshots_max"]
    session.say(found, f"a VM may have {show_count(most, 'snapshot')} of schedules")


def _change(
    session: Session, vm: str | None, name: str | None, remove: bool, none: bool, given: dict[str, Any]
) -> None:
    """One schedule of a VM, or of the default set; or all of them, to none."""
    change = _named(given)
    if none and (name or remove or change):
        raise InvalidArgument("--none stands alone: it takes all schedules away")
    if not none and name is None:
        raise InvalidArgument("say which schedule: its NAME, like hourly")
    if not none and remove == bool(change):
        raise InvalidArgument(f"say what to change of schedule {name}: {OPTIONS}; or --remove alone")
    if none:
        found = session.client.put(_path(vm), {"schedules": []})
    elif remove:
        found = session.client.delete(f"{_path(vm)}/{_checked(name or '')}")
    else:
        _refuse_half(session, vm, name or "", change)
        found = session.client.patch(f"{_path(vm)}/{_checked(name or '')}", change)
    session.show(found, lambda: _tell_set(found))


def _refuse_half(session: Session, vm: str | None, name: str, change: dict[str, Any]) -> None:
    """A schedule that is not there yet needs more: said here in the words of the options."""
    if {"at", "keep_seconds"} <= change.keys():
        return
    if name not in [one["name"] for one in session.client.get(_path(vm))["schedules"]]:
        raise InvalidArgument(f"there is no schedule {name} yet: a new one needs --at TEXT and --keep DURATION")


def _named(given: dict[str, Any]) -> dict[str, Any]:
    named = {field: value for field, value in given.items() if value is not None}
    return {**named, "keep_remote_seconds": None} if named.get("keep_remote_seconds") == values.SAME else named


def _checked(name: str) -> str:
    return check_name("schedule", name)


def _tell_set(found: dict[str, Any]) -> None:
    if found["vm"] is None:
        whose = "the default schedules" if found["schedules"] else "there are no default schedules"
    elif not found["schedules"]:
        whose = f"VM {found['vm']} has no schedules" + ("" if found["own"] else ", as there are no default ones")
    else:
        whose = f"VM {found['vm']} has schedules of its own" if found["own"] else f"VM {found['vm']} has the default schedules"
    click.echo(f"{whose}:" if found["schedules"] else f"{whose}: no snapshots are taken but those that somebody asks for")
    rows = [
        [one["name"], one["at"], one["zone"], show_period(one["keep_seconds"]), _consistency(one), _remote(one)]
        for one in found["schedules"]
    ]
    print_columns(["SCHEDULE", "AT", "ZONE", "KEPT FOR", "CONSISTENCY", "REPLICATE"], rows)


def _consistency(one: dict[str, Any]) -> str:
    if one["consistency"] == "crash":
        return "crash"
    limit = one["freeze_seconds_max"]
    within = "" if limit == LIMIT_SECONDS else f" within {show_period(limit)}"
    return f"vm{within}, else {one['if_not_frozen']}"


def _remote(one: dict[str, Any]) -> str:
    if not one["replicate"]:
        return "no"
    keep = one["keep_remote_seconds"]
    return "yes" if keep is None else f"yes, kept for {show_period(keep)}"


def _kept_there(run: dict[str, Any]) -> str:
    seconds = run["kept_remote_seconds"]
    return "not sent" if seconds is None else show_period(seconds)


def _path(vm: str | None) -> str:
    return "/schedules" if vm is None else f"/vms/{vm}/schedules"
