"""blockdevctl snapshot export, import, inspect: stream files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import ask, print_columns, print_fields
from blockdev.cli.session import Session, Verb, detach_option, pass_session, yes_option
from blockdev.errors import InvalidArgument
from blockdev.written import show_size

LEVEL_DEFAULT, LEVEL_MAX = 3, 19


@click.command(cls=Verb)
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.argument("file", type=values.PATH)
@click.option("--since", metavar="OLDER", help="Only what changed since this older snapshot of the VM.")
@click.option("--level", type=click.IntRange(0, LEVEL_MAX), default=LEVEL_DEFAULT, help="Of zstd (default: 3); 0: not compressed.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@detach_option
@yes_option
@pass_session
def export(
    session: Session, name: values.Ref, file: str, since: str | None, level: int, overwrite: bool, detach: bool, yes: bool
) -> None:
    """Write a snapshot into a stream file, all of it or what changed since another one."""
    if overwrite and Path(file).exists():
        ask(f"replace the file {file} ({show_size(Path(file).stat().st_size)})", yes)
    older = None if since is None else _older(name, since)
    body = {"path": file, "since": older, "level": level, "overwrite": overwrite}
    job = session.client.post(f"/vms/{name.vm}/snapshots/{name.snapshot}/export", body)
    if detach:
        session.leave(job)
        return
    made = session.follow(job, f"exporting {name}")
    what = f"{name}, what changed since {older}," if older else str(name)
    session.say(made, f"exported {what} to {file}: {show_size(made['data_bytes'])} in {show_size(made['file_bytes'])}")


def _older(name: values.Ref, since: str) -> str:
    """OLDER or VM@OLDER."""
    ref = values.parse_vm_snapshot(since if "@" in since else f"{name.vm}@{since}")
    if ref.vm != name.vm:
        raise InvalidArgument(f"{since} and {name} are of different VMs: name two snapshots of one")
    return str(ref.snapshot)


@click.command(cls=Verb, name="import")
@click.argument("file", type=values.PATH)
@click.option("--vm", type=values.VM, metavar="NAME", help="What to call the new VM, or which VM it belongs to.")
@click.option("--name", metavar="SNAPSHOT", help="What to call the snapshot.")
@click.option("--keep", type=values.KEEP, metavar="DURATION", help="Delete it so long from now (default: never).")
@detach_option
@pass_session
def import_(session: Session, file: str, vm: str | None, name: str | None, keep: int | None, detach: bool) -> None:
    """Take in a snapshot from a stream file: as a new VM, or into the VM that has the snapshot it builds on."""
    body = {"path": file, "vm": vm, "name": name, "keep_seconds": keep}
    job = session.client.post("/streams/import", body)
    if detach:
        session.leave(job)
        return
    found = session.follow(job, f"importing {Path(file).name}")
    made = found["made"]
    what = f"VM {made['vm']} with snapshot" if found["made_vm"] else "snapshot"
    session.say(found, f"imported {file} as {what} {made['vm']}@{made['name']} ({show_size(found['data_bytes'])})")


@click.command(cls=Verb)
@click.argument("file", type=values.PATH)
@pass_session
def inspect(session: Session, file: str) -> None:
    """Tell what a stream file holds, and verify all of it."""
    found = session.follow(session.client.post("/streams/inspect", {"path": file}), f"reading {Path(file).name}")
    session.show(found, lambda: _tell(found))


def _tell(found: dict[str, Any]) -> None:
    base = found["base"]
    print_fields(
        [
            ("snapshot", f"{found['vm']}@{found['snapshot']}"),
            ("uuid", found["uuid"]),
            ("created", found["created"]),
            ("consistency", found["consistency"]),
            ("builds on", f"{found['vm']}@{base['name']}, uuid {base['uuid']}" if base else "nothing: it is whole"),
            ("data", f"{show_size(found['data_bytes'])} in a file of {show_size(found['file_bytes'])}"),
            ("verified", "every byte"),
        ]
    )
    click.echo()
    rows = [
        [
            disk["name"],
            show_size(disk["size_bytes"]),
            show_size(disk["data_bytes"]),
            show_size(disk["hole_bytes"]),
            "its base" if disk["based"] else "nothing",
        ]
        for disk in found["disks"]
    ]
    print_columns(["DISK", "SIZE", "DATA", "HOLES", "BUILDS ON"], rows, right=(1, 2, 3))
