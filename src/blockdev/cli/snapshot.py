"""blockdevctl snapshot: points in time of VMs."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import ask, print_columns, print_fields, show_size
from blockdev.cli.session import Noun, Session, force_option, pass_session, yes_option
from blockdev.cli.vm import show_clients, show_disks
from blockdev.errors import InvalidArgument


@click.group(cls=Noun)
def snapshot() -> None:
    """Points in time of whole VMs."""


@snapshot.command()
@click.argument("vm", type=values.VM)
@click.option("--name", metavar="NAME", help="Default: the time.")
@click.option("--description", default="", metavar="TEXT")
@pass_session
def create(session: Session, vm: str, name: str | None, description: str) -> None:
    """Keep all disks of a VM as they are at this instant, and its configuration."""
    made = session.client.post(f"/vms/{vm}/snapshots", {"name": name, "description": description})
    session.say(made, f"took snapshot {vm}@{made['name']} of {show_disks(made['disks'])}")


@snapshot.command(name="list")
@click.argument("vm", type=values.VM)
@pass_session
def list_(session: Session, vm: str) -> None:
    """List the snapshots of a VM, oldest first."""
    found = session.client.get(f"/vms/{vm}/snapshots")

    def tell() -> None:
        rows = [
            [f"{vm}@{s['name']}", show_size(s["size_bytes"]), s["created"], s["consistency"], s["origin"]]
            for s in found["snapshots"]
        ]
        print_columns(["SNAPSHOT", "SIZE", "CREATED", "CONSISTENCY", "ORIGIN"], rows, right=(1,))
        if not rows:
            click.echo(f"VM {vm} has no snapshots: take one with blockdevctl snapshot create {vm}")

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
        ("consistency", found["consistency"]),
        ("origin", found["origin"]),
    ]
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
    ask(f"delete snapshot {name} of {found['created']} with {show_disks(found['disks'])}", yes)
    session.say(session.client.delete(_path(name), force=force), f"deleted snapshot {name}")


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
    found = session.client.get(f"{_path(until)}/diff", older=since.snapshot if since else None, disk=disk)
    session.show(found, lambda: _tell_diff(found, extents))


def _tell_diff(found: dict[str, Any], extents: bool) -> None:
    rows = [[disk["disk"], show_size(disk["changed_bytes"]), str(len(disk["extents"]))] for disk in found["disks"]]
    print_columns(["DISK", "CHANGED", "EXTENTS"], rows, right=(1, 2))
    if extents:
        click.echo()
        listed = [
            [disk["disk"], str(extent["offset"]), str(extent["length"]), extent["state"]]
            for disk in found["disks"]
            for extent in disk["extents"]
        ]
        print_columns(["DISK", "OFFSET", "LENGTH", "STATE"], listed, right=(1, 2))


def _path(name: values.Ref) -> str:
    return f"/vms/{name.vm}/snapshots/{name.snapshot}"
