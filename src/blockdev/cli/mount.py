"""blockdevctl snapshot mount and unmount: files out of a snapshot, by the person's own process and rights."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.errors import InvalidArgument, NotFound, ToolFailed
from blockdev.targets.mount import TOOLS, Mounts, Tool, Wanted


@click.command(cls=Verb)
@click.argument("name", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.argument("directory", type=values.PATH)
@click.option("--disk", metavar="DISK", help="This disk (default: the only one; guestmount takes them all).")
@click.option("--partition", type=click.IntRange(1, 128), metavar="N", help="This partition (default: the only one that fits).")
@click.option("--tool", "wanted_tool", type=click.Choice(TOOLS), help="By this one (default: guestmount where it is installed).")
@click.option("--print", "only_print", is_flag=True, help="Only print what could be typed to do it by hand.")
@pass_session
def mount(
    session: Session,
    name: values.Ref,
    directory: str,
    disk: str | None,
    partition: int | None,
    wanted_tool: Tool | None,
    only_print: bool,
) -> None:
    """Mount a snapshot's file system in an empty DIRECTORY, read-only.  The VM goes on and does not notice.

    By guestmount where it is installed, else as root by nbdfuse.  A snapshot that is crash-consistent is like a disk
    after a power cut: the last files may be missing or cut short, as no journal is played back.
    """
    found = session.client.get(f"/vms/{name.vm}/snapshots/{name.snapshot}")
    mounts = Mounts(session.home)
    tool = mounts.tool(wanted_tool)
    wanted = _wanted(name, found, Path(directory), disk, partition, alone=tool != "guestmount")
    if only_print:
        _print_ways(session, mounts, wanted)
        return
    if tool is None:
        _print_ways(session, mounts, wanted)
        missing = wanted_tool or "guestmount or nbdfuse"
        if os.geteuid() and wanted_tool != "guestmount":
            missing = f"{missing} (nbdfuse needs root)"
        raise ToolFailed(f"nothing was mounted: that takes {missing}; what to install and to type is printed above")
    done = mounts.mount(wanted, tool)
    kind = done.file_system
    part = f" partition {kind.partition}" if kind and kind.partition else ""
    what = f"{wanted.exports[0]}{part} ({kind.kind})" if kind else str(name)
    document = {
        "directory": directory,
        "exports": list(wanted.exports),
        "tool": tool,
        "file_system": kind.kind if kind else None,
        "partition": kind.partition if kind else partition,
    }
    ending = f"end it with blockdevctl snapshot unmount {shlex.quote(directory)}"
    session.say(document, f"mounted {what} read-only at {directory}; {ending}")


@click.command(cls=Verb)
@click.argument("directory", type=values.PATH)
@pass_session
def unmount(session: Session, directory: str) -> None:
    """End what `snapshot mount` began at DIRECTORY, also while nobody serves the home."""
    Mounts(session.home).unmount(Path(directory))
    session.say({"directory": directory}, f"unmounted {directory}")


def _wanted(
    name: values.Ref, found: dict[str, Any], directory: Path, disk: str | None, partition: int | None, alone: bool
) -> Wanted:
    """alone: one disk only can be mounted."""
    exports = {one["name"]: str(one["export"]) for one in found["disks"]}
    if disk is not None and disk not in exports:
        raise NotFound(f"snapshot {name} has no disk {disk}: it has {', '.join(exports)}")
    chosen = [exports[disk]] if disk is not None else list(exports.values())
    if len(chosen) > 1 and (alone or partition is not None):
        raise InvalidArgument(f"say which disk of {name} with --disk: it has {', '.join(exports)}")
    return Wanted(chosen, partition, directory)


def _print_ways(session: Session, mounts: Mounts, wanted: Wanted) -> None:
    ways: dict[Tool, list[str]] = {tool: mounts.commands(tool, wanted) for tool in TOOLS}

    def tell() -> None:
        click.echo("By guestmount, which also reads LVM and needs no root:")
        click.echo("".join(f"  {line}\n" for line in ways["guestmount"]))
        click.echo("By nbdfuse and a loop device, as root:")
        click.echo("".join(f"  {line}\n" for line in ways["nbdfuse"]), nl=False)

    session.show({"ways": ways}, tell)
