"""blockdevctl vm: virtual machines as wholes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.hypervisor import register, show_domain, unregister
from blockdev.cli.output import ask, print_columns, print_fields
from blockdev.cli.policy import compression_option, dedup_option, vm_policy
from blockdev.cli.session import (
    Noun,
    Session,
    detach_option,
    force_option,
    pass_session,
    read_text,
    yes_option,
)
from blockdev.cli.statistics import vm_stats
from blockdev.cli.usage import vm_usage
from blockdev.errors import InvalidArgument
from blockdev.written import show_count, show_size

IMAGE_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")


@click.group(cls=Noun)
def vm() -> None:
    """Virtual machines."""


vm.add_command(vm_policy)
vm.add_command(register)
vm.add_command(unregister)
vm.add_command(vm_usage)
vm.add_command(vm_stats)


@vm.command()
@click.argument("name", type=values.VM)
@click.option(
    "--disk", "disks", type=values.NAMED_SIZE, multiple=True, metavar="NAME=SIZE", help="A disk; repeat for more."
)
@click.option(
    "--image",
    "images",
    type=values.NAMED_FILE,
    multiple=True,
    metavar="NAME=FILE",
    help="Fill a disk from an image; without --disk for it the disk is as large as the image.",
)
@click.option("--format", "format", type=click.Choice(IMAGE_FORMATS), help="Of the images (default: recognised).")
@click.option("--config", type=values.PATH, metavar="FILE", help="Text to keep with the VM, such as libvirt XML.")
@click.option("--description", default="", metavar="TEXT", help="Text to keep with it.")
@compression_option
@dedup_option
@detach_option
@pass_session
def create(
    session: Session,
    name: str,
    disks: tuple[tuple[str, int], ...],
    images: tuple[tuple[str, str], ...],
    format: str | None,
    config: str | None,
    description: str,
    compression: str | None,
    dedup: str | None,
    detach: bool,
) -> None:
    """Make a VM with empty disks, or disks filled from images."""
    body = {
        "name": name,
        "disks": _new_disks(disks, images, format),
        "config": read_text(config) if config else "",
        "description": description,
        "compression": compression,
        "dedup": dedup,
    }
    if detach and not images:
        raise InvalidArgument("--detach is for --image: empty disks are made at once")
    made = session.client.post("/vms", body)
    if detach:
        session.leave(made)
        return
    if images:
        made = session.follow(made, f"importing {', '.join(Path(path).name for _, path in images)}")
    session.say(made, f"created VM {name} with {show_disks(made['disks'])}")


def _new_disks(
    disks: tuple[tuple[str, int], ...], images: tuple[tuple[str, str], ...], format: str | None
) -> list[dict[str, Any]]:
    """In the order they were given: --disk before --image."""
    names = [name for name, _ in disks]
    image_names = [name for name, _ in images]
    for given in (names, image_names):
        for twice in {name for name in given if given.count(name) > 1}:
            raise InvalidArgument(f"disk {twice} is given twice")
    if not disks and not images:
        raise InvalidArgument("a VM needs a disk: say --disk NAME=SIZE or --image NAME=FILE")
    found: dict[str, dict[str, Any]] = {name: {"name": name, "size_bytes": size} for name, size in disks}
    for name, path in images:
        found.setdefault(name, {"name": name})["image"] = {"path": path, "format": format}
    return list(found.values())


@vm.command(name="list")
@click.option("--name", "glob", metavar="GLOB", help="Only those whose name matches, such as 'web-*'.")
@click.option("--cloned-from", type=values.VM_MAYBE_SNAPSHOT, metavar="VM[@SNAPSHOT]", help="Only clones of it, by the name that it had then.")
@pass_session
def list_(session: Session, glob: str | None, cloned_from: values.Ref | None) -> None:
    """List the VMs, by name."""
    found = session.client.get_all("/vms", "vms", name=glob, cloned_from=cloned_from)

    def tell() -> None:
        any_domain = any(vm["domain"] for vm in found["vms"])
        any_replicated = any(vm["protected_over"] or vm["received"] for vm in found["vms"])
        rows = [
            [
                *(vm["name"], str(len(vm["disks"])), show_size(vm["size_bytes"]), str(vm["snapshot_count"]), vm["created"]),
                *([show_domain(vm["domain"])] if any_domain else []),
                *([show_replication(vm)] if any_replicated else []),
            ]
            for vm in found["vms"]
        ]
        headers = ["VM", "DISKS", "SIZE", "SNAPSHOTS", "CREATED", *(["DOMAIN"] if any_domain else []), *(["REPLICATED"] if any_replicated else [])]
        print_columns(headers, rows, right=(1, 2, 3))
        if not rows:
            none_yet = "no VMs yet: make one with blockdevctl vm create NAME --disk root=20G"
            asked = [f"is a clone of {cloned_from}"] if cloned_from else []
            asked += [f"has a name that matches {glob}"] if glob else []
            click.echo(f"no VM {' and '.join(asked)}" if asked else none_yet)

    session.show(found, tell)


@vm.command()
@click.argument("name", type=values.VM)
@pass_session
def show(session: Session, name: str) -> None:
    """Show a VM, its disks and who is attached to them."""
    found = session.client.get(f"/vms/{name}")
    session.show(found, lambda: _tell_vm(found))


def _tell_vm(vm: dict[str, Any]) -> None:
    fields = [("VM", vm["name"]), ("UUID", vm["uuid"]), ("created", vm["created"])]
    if vm["description"]:
        fields.append(("description", vm["description"]))
    if vm["cloned_from"]:
        fields.append(("cloned from", vm["cloned_from"]))
    fields += [(field, vm["policy"][field]) for field in ("compression", "dedup") if vm["policy"][field]]
    if vm["agent"]:
        fields.append(("agent", vm["agent"]))
    if vm["domain"]:
        fields.append(("domain", show_domain(vm["domain"])))
    if vm["protected_over"] or vm["received"]:
        fields.append(("replicated", show_replication(vm)))
    fields.append(("snapshots", str(vm["snapshot_count"])))
    print_fields(fields)
    click.echo()
    rows = [
        [disk["name"], show_size(disk["size_bytes"]), disk["export"], disk["state"], show_clients(disk["clients"])]
        for disk in vm["disks"]
    ]
    print_columns(["DISK", "SIZE", "EXPORT", "STATE", "ATTACHED BY"], rows, right=(1,))


def show_replication(vm: dict[str, Any]) -> str:
    """to site-b; from site-a, read-only; from site-a, promoted, to site-a."""
    received, paths = vm["received"], vm["protected_over"]
    parts = [] if received is None else [f"from {received['peer']}", "promoted" if received["promoted"] else "read-only"]
    return ", ".join(parts + ([f"to {', '.join(paths)}"] if paths else [])) or "-"


def show_clients(clients: list[str] | None) -> str:
    return "unknown" if clients is None else ", ".join(clients) or "-"


def show_disks(disks: list[dict[str, Any]]) -> str:
    """disks root (20 GiB), data (100 GiB)."""
    listed = ", ".join(f"{disk['name']} ({show_size(disk['size_bytes'])})" for disk in disks)
    return f"disk{'s' if len(disks) > 1 else ''} {listed}" if disks else "no disks"


@vm.command()
@click.argument("name", type=values.VM)
@click.argument("new_name", type=values.VM)
@force_option
@pass_session
def rename(session: Session, name: str, new_name: str, force: bool) -> None:
    """Give a VM, and so its exports, another name."""
    changed = session.client.patch(f"/vms/{name}", {"name": new_name, "force": force})
    session.say(changed, f"renamed VM {name} to {new_name}")


@vm.command()
@click.argument("name", type=values.VM)
@force_option
@yes_option
@pass_session
def delete(session: Session, name: str, force: bool, yes: bool) -> None:
    """Delete a VM with its disks and snapshots."""
    found = session.client.get(f"/vms/{name}")
    ask(f"delete VM {name} with {show_disks(found['disks'])} and {show_snapshots(found)}", yes)
    gone = session.client.delete(f"/vms/{name}", force=force)
    session.say(gone, f"deleted VM {name} with {show_disks(gone['disks'])} and {show_snapshots(gone)}")


def show_snapshots(vm: dict[str, Any]) -> str:
    count = vm["snapshot_count"]
    return show_count(count, "snapshot") if count else "no snapshots"


@vm.command()
@click.argument("name", type=values.VM)
@click.argument("path", type=values.PATH, required=False)
@click.option("--none", "no_agent", is_flag=True, help="It has no agent any more.")
@pass_session
def agent(session: Session, name: str, path: str | None, no_agent: bool) -> None:
    """Show where the guest agent of a VM listens, or say it: the host's side of its channel, a Unix socket.

    It freezes the guest for snapshots with --consistency vm; docs/quiesce.md says how QEMU is given the channel.
    """
    if path is not None and no_agent:
        raise InvalidArgument("say where the agent listens, or --none, not both")
    if path is None and not no_agent:
        found = session.client.get(f"/vms/{name}")
        way, words = _agent_of(found)
        session.show({"agent": found["agent"], "way": way}, lambda: click.echo(words))
        return
    changed = session.client.patch(f"/vms/{name}", {"agent": path})
    if path is not None:
        session.say(changed, f"the guest agent of VM {name} listens at {path}")
        return
    way, words = _agent_of(changed)
    session.say(changed, f"VM {name} has no guest agent{' of its own' if way else ''} now" + (f"; it is asked {words}" if way else ""))


def _agent_of(vm: dict[str, Any]) -> tuple[str | None, str]:
    """Which way its guest is frozen, in one word and in a person's."""
    if vm["agent"]:
        return "socket", vm["agent"]
    if vm["domain"] and vm["domain"]["state"] == "there":
        return "libvirt", f"through libvirt, by domain {show_domain(vm['domain'])}"
    return None, "no agent"


@vm.command()
@click.argument("name", type=values.VM)
@click.option("--set", "file", type=values.PATH, metavar="FILE", help="Replace the text by that of FILE.")
@pass_session
def config(session: Session, name: str, file: str | None) -> None:
    """Print the text kept with a VM, or replace it."""
    if file is not None:
        changed = session.client.put(f"/vms/{name}/config", {"config": read_text(file)})
        session.say(changed, f"replaced the configuration of VM {name} by that of {file}")
        return
    found = session.client.get(f"/vms/{name}/config")
    session.show(found, lambda: click.echo(found["config"], nl=False))


@vm.command()
@click.argument("source", metavar="VM[@SNAPSHOT]", type=values.VM_MAYBE_SNAPSHOT)
@click.argument("directory", type=values.PATH)
@click.option("--format", "format", type=click.Choice(IMAGE_FORMATS), default="qcow2", show_default=True)
@detach_option
@pass_session
def export(session: Session, source: values.Ref, directory: str, format: str, detach: bool) -> None:
    """Write all disks of one instant and the configuration into a new directory."""
    body = {"directory": directory, "format": format, "snapshot": source.snapshot}
    job = session.client.post(f"/vms/{source.vm}/export", body)
    if detach:
        session.leave(job)
        return
    result = session.follow(job, f"exporting {source}")
    used = sum(disk["used_bytes"] for disk in result["disks"])
    session.say(result, f"exported {show_disks(result['disks'])} of {source} to {directory}, {show_size(used)} there")
