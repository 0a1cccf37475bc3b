"""blockdevctl disk: the disks of VMs."""

from __future__ import annotations

from pathlib import Path

import click

from blockdev.cli import values
from blockdev.cli.output import ask
from blockdev.cli.session import Noun, Session, detach_option, force_option, pass_session, yes_option
from blockdev.cli.vm import IMAGE_FORMATS
from blockdev.errors import InvalidArgument, NotFound
from blockdev.written import show_size

FORMAT_OF_SUFFIX = {".img": "raw", **{f".{format}": format for format in IMAGE_FORMATS}}


@click.group(cls=Noun)
def disk() -> None:
    """Disks of VMs."""


@disk.command()
@click.argument("name", metavar="VM/DISK", type=values.VM_DISK)
@click.argument("size", type=values.DISK_SIZE)
@pass_session
def add(session: Session, name: values.Ref, size: int) -> None:
    """Give a VM another, empty disk."""
    added = session.client.post(f"/vms/{name.vm}/disks", {"name": name.disk, "size_bytes": size})
    session.say(added, f"added disk {name} of {show_size(size)}")


@disk.command()
@click.argument("name", metavar="VM/DISK", type=values.VM_DISK)
@click.argument("size", type=values.DISK_SIZE)
@click.option("--shrink", is_flag=True, help="Allow a smaller size; what lies beyond it is lost.")
@yes_option
@pass_session
def resize(session: Session, name: values.Ref, size: int, shrink: bool, yes: bool) -> None:
    """Make a disk larger, or with --shrink smaller."""
    before = _size_of(session, name)
    if size < before and not shrink:
        raise InvalidArgument(
            f"disk {name} has {show_size(before)}: at {show_size(size)} what lies beyond is lost; take a snapshot first, then say --shrink"
        )
    if size < before:
        ask(f"cut the last {show_size(before - size)} off disk {name}", yes)
    body = {"size_bytes": size, "force_shrink": shrink}
    changed = session.client.patch(f"/vms/{name.vm}/disks/{name.disk}", body)
    session.say(changed, f"resized disk {name} from {show_size(before)} to {show_size(changed['size_bytes'])}")


@disk.command()
@click.argument("name", metavar="VM/DISK", type=values.VM_DISK)
@force_option
@yes_option
@pass_session
def remove(session: Session, name: values.Ref, force: bool, yes: bool) -> None:
    """Delete a disk; what snapshots hold of it stays."""
    size = _size_of(session, name)
    ask(f"delete disk {name} ({show_size(size)}); snapshots keep what they hold of it", yes)
    gone = session.client.delete(f"/vms/{name.vm}/disks/{name.disk}", force=force)
    session.say(gone, f"removed disk {name} ({show_size(size)})")


@disk.command(name="import")
@click.argument("name", metavar="VM/DISK", type=values.VM_DISK)
@click.argument("file", type=values.PATH)
@click.option("--format", "format", type=click.Choice(IMAGE_FORMATS), help="Of the image (default: recognised).")
@click.option("--size", type=values.DISK_SIZE, help="Of the disk (default: the image's).")
@click.option("--replace", is_flag=True, help="Replace what the disk holds; without it the disk must not exist.")
@detach_option
@yes_option
@pass_session
def import_(
    session: Session,
    name: values.Ref,
    file: str,
    format: str | None,
    size: int | None,
    replace: bool,
    detach: bool,
    yes: bool,
) -> None:
    """Fill a new disk from an image: raw, qcow2, vmdk, vdi or vhdx."""
    if replace:
        ask(f"replace what disk {name} ({show_size(_size_of(session, name))}) holds by {file}", yes)
    body = {"image": {"path": file, "format": format}, "size_bytes": size, "replace": replace}
    job = session.client.post(f"/vms/{name.vm}/disks/{name.disk}/import", body)
    if detach:
        session.leave(job)
        return
    filled = session.follow(job, f"importing {Path(file).name}")
    session.say(filled, f"imported {file} as disk {name} of {show_size(filled['size_bytes'])}")


@disk.command()
@click.argument("name", metavar="VM/DISK[@SNAPSHOT]", type=values.VM_DISK_SNAPSHOT)
@click.argument("file", type=values.PATH)
@click.option("--format", "format", type=click.Choice(IMAGE_FORMATS), help="Default: by the file's suffix.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@detach_option
@yes_option
@pass_session
def export(
    session: Session, name: values.Ref, file: str, format: str | None, overwrite: bool, detach: bool, yes: bool
) -> None:
    """Make an image file of a disk, as it is now or in a snapshot."""
    suffix = Path(file).suffix.lower()
    if format is None and suffix not in FORMAT_OF_SUFFIX:
        raise InvalidArgument(f"which format is {Path(file).name}? say --format {'|'.join(IMAGE_FORMATS)}")
    if overwrite and Path(file).exists():
        ask(f"replace the file {file} ({show_size(Path(file).stat().st_size)})", yes)
    body = {
        "path": file,
        "format": format or FORMAT_OF_SUFFIX[suffix],
        "snapshot": name.snapshot,
        "overwrite": overwrite,
    }
    job = session.client.post(f"/vms/{name.vm}/disks/{name.disk}/export", body)
    if detach:
        session.leave(job)
        return
    made = session.follow(job, f"exporting {name}")
    session.say(made, f"exported {name} to {file} ({made['format']}, {show_size(made['used_bytes'])} there)")


def _size_of(session: Session, name: values.Ref) -> int:
    for disk in session.client.get(f"/vms/{name.vm}")["disks"]:
        if disk["name"] == name.disk:
            return int(disk["size_bytes"])
    raise NotFound(f"VM {name.vm} has no disk {name.disk}")
