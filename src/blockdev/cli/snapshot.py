"""blockdevctl snapshot: points in time of VMs."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import ask, print_columns, print_fields
from blockdev.cli.session import Noun, Session, force_option, pass_session, yes_option
from blockdev.cli.vm import show_clients, show_disks
from blockdev.clock import now_seconds
from blockdev.errors import InvalidArgument, Locked
from blockdev.quiesce.limits import LIMIT_SECONDS, LIMIT_SECONDS_MAX
from blockdev.vmmap.clock import to_text
from blockdev.written import show_period, show_size

# not from vmmap.model: that takes 70 ms to load
CONSISTENCIES = ("crash", "vm")
IF_NOT_FROZEN = ("crash", "fail")
ORIGINS = ("manual", "clone", "restore", "schedule", "import", "replication")
EXTENTS_AT_ONCE = 1 << 16

consistency_option = click.option(
    "--consistency",
    type=click.Choice(CONSISTENCIES),
    help="vm: freeze the guest's file systems by its agent meanwhile; crash (the default): as after a power cut.",
)
if_not_frozen_option = click.option(
    "--if-not-frozen",
    type=click.Choice(IF_NOT_FROZEN),
    help="When the guest cannot be frozen: crash (the default) takes the snapshot all the same, fail takes none.",
)
freeze_limit_option = click.option(
    *("--freeze-limit", "freeze_seconds_max"),
    type=values.DURATION,
    metavar="DURATION",
    help=f"The guest is thawed after so long, whatever the snapshot does (default: {LIMIT_SECONDS}s, at most {LIMIT_SECONDS_MAX}s).",
)


@click.group(cls=Noun)
def snapshot() -> None:
    """Points in time of whole VMs."""


@snapshot.command()
@click.argument("vm", type=values.VM)
@click.option("--name", metavar="NAME", help="Default: the time.")
@click.option("--description", default="", metavar="TEXT", help="Text to keep with it.")
@consistency_option
@if_not_frozen_option
@freeze_limit_option
@click.option("--keep", type=values.KEEP, metavar="DURATION", help="Delete it so long from now (default: never).")
@click.option("--lock", type=values.DURATION, metavar="DURATION", help="Let nobody delete it for so long.")
@pass_session
def create(
    session: Session,
    vm: str,
    name: str | None,
    description: str,
    consistency: str | None,
    if_not_frozen: str | None,
    freeze_seconds_max: int | None,
    keep: int | None,
    lock: int | None,
) -> None:
    """Keep all disks of a VM as they are at this instant, and its configuration.

    With --consistency vm the snapshot says whether that was achieved.
    """
    body = {
        "name": name,
        "description": description,
        "consistency": consistency or "crash",
        "if_not_frozen": if_not_frozen or "crash",
        **({} if freeze_seconds_max is None else {"freeze_seconds_max": freeze_seconds_max}),
        "keep_seconds": keep,
        "locked_until": None if lock is None else _from_now(lock),
    }
    made = session.client.post(f"/vms/{vm}/snapshots", body)
    session.say(made, f"took snapshot {vm}@{made['name']} of {show_disks(made['disks'])}{show_terms(made)}")


def show_terms(made: dict[str, Any]) -> str:
    """What else is to be said of a new snapshot, or nothing."""
    found = []
    if made["consistency"] != made["asked"]:
        found.append(f"its consistency is {_consistency(made)}: the guest was not frozen")
    if made["expires"]:
        found.append(f"kept until {made['expires']}")
    if made["locked_until"]:
        found.append(f"locked until {made['locked_until']}")
    return "".join(f"; {part}" for part in found)


@snapshot.command(name="list")
@click.argument("vm", type=values.VM)
@click.option("--origin", type=click.Choice(ORIGINS), help="Only those of this origin.")
@click.option("--schedule", metavar="NAME", help="Only those that this schedule took.")
@pass_session
def list_(session: Session, vm: str, origin: str | None, schedule: str | None) -> None:
    """List the snapshots of a VM, oldest first."""
    found = session.client.get_all(f"/vms/{vm}/snapshots", "snapshots", origin=origin, schedule=schedule)

    def tell() -> None:
        any_there = any(s["newest_on"] for s in found["snapshots"])
        rows = [
            [
                f"{vm}@{s['name']}",
                show_size(s["size_bytes"]),
                _changed(s),
                s["created"],
                s["consistency"],
                _taken_by(s),
                s["expires"] or "-",
                s["locked_until"] or "-",
                *([", ".join(s["newest_on"]) or "-"] if any_there else []),
            ]
            for s in found["snapshots"]
        ]
        headers = ["SNAPSHOT", "SIZE", "CHANGED", "CREATED", "CONSISTENCY", "TAKEN BY", "EXPIRES", "LOCKED UNTIL", *(["NEWEST ON"] if any_there else [])]
        print_columns(headers, rows, right=(1, 2))
        if not rows:
            none_yet = f"VM {vm} has no snapshots: take one with blockdevctl snapshot create {vm}"
            click.echo(f"VM {vm} has no such snapshots" if origin or schedule else none_yet)

    session.show(found, tell)


@snapshot.command()
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@pass_session
def show(session: Session, name: values.Ref) -> None:
    """Show a snapshot, its disks and who is attached to them."""
    found = session.client.get(_path(name))
    session.show(found, lambda: _tell_snapshot(found))


def _tell_snapshot(found: dict[str, Any]) -> None:
    fields = [
        ("snapshot", f"{found['vm']}@{found['name']}"),
        ("created", found["created"]),
        ("LSN", str(found["lsn"])),
        ("changed", _changed(found)),
        ("uuid", found["uuid"]),
        ("consistency", _consistency(found)),
        ("taken by", _taken_by(found)),
        ("expires", found["expires"] or "never"),
        ("locked until", found["locked_until"] or "not locked"),
    ]
    if found["newest_on"]:
        fields.append(("newest on", ", ".join(found["newest_on"])))
    if found["frozen_ms"] is not None:
        fields.insert(4, ("guest frozen", f"{found['frozen_ms']} ms"))
    if found["description"]:
        fields.insert(1, ("description", found["description"]))
    print_fields(fields)
    click.echo()
    rows = [
        [disk["name"], show_size(disk["size_bytes"]), disk["export"], disk["state"], show_clients(disk["clients"])]
        for disk in found["disks"]
    ]
    print_columns(["DISK", "SIZE", "EXPORT", "STATE", "ATTACHED BY"], rows, right=(1,))


@snapshot.command()
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@force_option
@yes_option
@pass_session
def delete(session: Session, name: values.Ref, force: bool, yes: bool) -> None:
    """Delete a snapshot; clones made of it are not touched."""
    found = session.client.get(_path(name))
    paths = ", ".join(found["newest_on"])
    cost = f"; it is the newest that path {paths} has: what comes next is compared with an older one" if paths else ""
    ask(f"delete snapshot {name} of {found['created']} with {show_disks(found['disks'])}{cost}", yes)
    session.say(session.client.delete(_path(name), force=force), f"deleted snapshot {name}")


@snapshot.command()
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.option("--for", "seconds", type=values.DURATION, metavar="DURATION", help="From now.")
@click.option("--release", is_flag=True, help="Unlock it.")
@pass_session
def lock(session: Session, name: values.Ref, seconds: int | None, release: bool) -> None:
    """Let nobody delete a snapshot, nor its VM, for a time.  It is kept from mistakes: --release ends it."""
    if release == (seconds is not None):
        raise InvalidArgument("say either --for DURATION or --release")
    until = None if seconds is None else _from_now(seconds)
    before = session.client.get(_path(name))["locked_until"]
    if until is not None and (before or "") > until:
        raise Locked(f"snapshot {name} is locked until {before}, which is longer: say --release first, if that is meant")
    changed = session.client.patch(_path(name), {"locked_until": until})
    session.say(changed, f"locked snapshot {name} until {until}" if until else f"unlocked snapshot {name}")


@snapshot.command()
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.argument("seconds", metavar="DURATION|forever", type=values.DURATION_OR_FOREVER)
@pass_session
def keep(session: Session, name: values.Ref, seconds: int) -> None:
    """Say how long from now a snapshot is kept, whatever took it."""
    changed = session.client.patch(_path(name), {"expires": None if seconds == values.FOREVER else _from_now(seconds)})
    expires = changed["expires"]
    how_long = f"for {show_period(seconds)}, until {expires}" if expires else "until somebody deletes it"
    session.say(changed, f"snapshot {name} is kept {how_long}")


@snapshot.command()
@click.argument("older", metavar="[OLDER]", type=values.VM_SNAPSHOT)
@click.argument("newer", metavar="NEWER", type=values.VM_SNAPSHOT, required=False)
@click.option("--disk", metavar="DISK", help="Only this disk.")
@click.option("--extents", is_flag=True, help="List every changed extent.")
@pass_session
def diff(session: Session, older: values.Ref, newer: values.Ref | None, disk: str | None, extents: bool) -> None:
    """What changed from one snapshot (VM@OLDER) to another (VM@NEWER), or with one what it holds."""
    since, until = (older, newer) if newer else (None, older)
    if since is not None and since.vm != until.vm:
        raise InvalidArgument(f"{since} and {until} are of different VMs: name two snapshots of one")
    asked = {"older": since.snapshot if since else None, "disk": disk}
    found = _all_of_diff(session, f"{_path(until)}/diff", asked, extents or session.json)
    session.show(found, lambda: _tell_diff(found, extents))


def _all_of_diff(session: Session, path: str, asked: dict[str, str | None], extents: bool) -> dict[str, Any]:
    """The pages of a diff as one, or without its extents."""
    found: dict[str, Any] = session.client.get(path, **asked, count=EXTENTS_AT_ONCE if extents else 0)
    disks = {disk["disk"]: disk["extents"] for disk in found["disks"]}
    after = found["next"]
    while extents and after is not None:
        page = session.client.get(path, **asked, count=EXTENTS_AT_ONCE, after=after)
        for disk in page["disks"]:
            disks[disk["disk"]] += disk["extents"]
        after = page["next"]
    return {**found, "next": None}


def _tell_diff(found: dict[str, Any], extents: bool) -> None:
    rows = [[disk["disk"], show_size(disk["changed_bytes"]), str(disk["extent_count"])] for disk in found["disks"]]
    print_columns(["DISK", "CHANGED", "EXTENTS"], rows, right=(1, 2))
    if extents:
        click.echo()
        listed = [
            [disk["disk"], str(extent["offset"]), str(extent["length"]), extent["state"]]
            for disk in found["disks"]
            for extent in disk["extents"]
        ]
        print_columns(["DISK", "OFFSET", "LENGTH", "STATE"], listed, right=(1, 2))


def _taken_by(found: dict[str, Any]) -> str:
    """manual, schedule hourly, clone, restore."""
    return f"schedule {found['schedule']}" if found["schedule"] else str(found["origin"])


def _changed(found: dict[str, Any]) -> str:
    """Since the snapshot before it; it is counted soon after it was taken."""
    return "-" if found["changed_bytes"] is None else show_size(found["changed_bytes"])


def _consistency(found: dict[str, Any]) -> str:
    if found["consistency"] == found["asked"]:
        return str(found["consistency"])
    return f"{found['consistency']} (asked for: {found['asked']})"


def _from_now(seconds: int) -> str:
    return to_text(now_seconds() + seconds)


def _path(name: values.Ref) -> str:
    return f"/vms/{name.vm}/snapshots/{name.snapshot}"
