"""blockdevctl hypervisor, vm register and vm unregister: where VMs run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blockdev.cli import values
from blockdev.cli.output import ask, print_columns
from blockdev.cli.session import Noun, Session, Verb, pass_session, yes_option
from blockdev.errors import BlockdevError, NotFound, Unavailable
from blockdev.written import show_count

AT_ONCE_MAX = 64
Command = TypeVar("Command", bound=Callable[..., Any])



def _at_once_option(default: str) -> Callable[[Command], Command]:
    text = f"How many registrations go on at the same time (default: {default})."
    return click.option("--at-once", type=click.IntRange(1, AT_ONCE_MAX), metavar="N", help=text)


at_once_option = _at_once_option("as many as the hypervisor takes")
start_option = click.option("--start", is_flag=True, help="Start the domains, too.")


def register_options(command: Command) -> Command:
    """Those of a command that makes VMs, which it may register."""
    register = click.option("--register", "hypervisor", type=values.HYPERVISOR, metavar="NAME", help="Register the clones with this hypervisor.")
    return register(at_once_option(start_option(command)))


@click.group(cls=Noun)
def hypervisor() -> None:
    """Hypervisors that run VMs, through libvirt."""


@hypervisor.command()
@click.argument("name", type=values.HYPERVISOR)
@click.argument("uri", metavar="URI")
@_at_once_option("4")
@pass_session
def add(session: Session, name: str, uri: str, at_once: int | None) -> None:
    """Keep a libvirt connection by name, such as qemu:///system or qemu+ssh://host/system; it must answer."""
    body = {"name": name, "uri": uri, **({} if at_once is None else {"at_once": at_once})}
    added = session.client.post("/hypervisors", body)
    count = show_count(added["domain_count"], "domain")
    session.say(added, f"added hypervisor {name}, libvirt {added['version']} with {count}; next: hypervisor discover {name}")


@hypervisor.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """List the hypervisors, and whether they answer."""
    found = session.client.get("/hypervisors")

    def tell() -> None:
        rows = [
            [
                *(one["name"], one["uri"], str(one["at_once"]), str(one["vm_count"])),
                "-" if one["domain_count"] is None else str(one["domain_count"]),
                f"libvirt {one['version']}" if one["is_reachable"] else f"unreachable: {one['error']}",
            ]
            for one in found["hypervisors"]
        ]
        print_columns(["HYPERVISOR", "URI", "AT ONCE", "VMS", "DOMAINS", "STATE"], rows, right=(2, 3, 4))
        if not rows:
            click.echo("no hypervisors: add one with blockdevctl hypervisor add NAME URI")

    session.show(found, tell)


@hypervisor.command()
@click.argument("name", type=values.HYPERVISOR)
@click.option("--force", is_flag=True, help="Forget which VMs its domains run, too.")
@pass_session
def remove(session: Session, name: str, force: bool) -> None:
    """Forget a hypervisor; nothing changes there."""
    gone = session.client.delete(f"/hypervisors/{name}", force=force)
    session.say(gone, f"forgot hypervisor {name}; its domains are as they were")


@hypervisor.command()
@click.argument("name", type=values.HYPERVISOR, required=False)
@pass_session
def discover(session: Session, name: str | None) -> int:
    """Find out which domains run which VMs, and take their configurations; nothing changes at the hypervisors."""
    found = session.client.post(f"/hypervisors/{name}/discover" if name else "/hypervisor-discovery")
    session.show(found, lambda: _tell_discovery(found))
    return BlockdevError.exit_status if any(one["error"] for one in found["hypervisors"]) else 0


def _tell_discovery(found: dict[str, Any]) -> None:
    for one in found["hypervisors"]:
        said = one["error"] and f"did not answer: {one['error']}"
        click.echo(f"hypervisor {one['hypervisor']}: {said or show_count(one['domain_count'], 'domain')}")
    for one in found["links"]:
        new = ", new" if one["is_new"] else ""
        click.echo(f"VM {one['vm']}: domain {one['hypervisor']}/{one['domain']}{new}")
    for one in found["lost"]:
        click.echo(f"VM {one['vm']} has no domain any more: {one['hypervisor']}/{one['domain']}, {one['reason']}")
    for one in found["foreign"]:
        click.echo(f"foreign disk: {one['hypervisor']}/{one['domain']} {one['target']}, {one['source']}")
    for one in found["mixed"]:
        click.echo(f"disks of several VMs: {one['hypervisor']}/{one['domain']} has those of {', '.join(one['vms'])}")
    for one in found["shared"]:
        click.echo(f"disk of several domains: {one['export']} is in {', '.join(one['domains'])}")
    for one in found["undecided"]:
        domains = ", ".join(one["domains"])
        click.echo(f"VM {one['vm']} is not linked: {domains} have disks of it; run only the one that is its domain, and discover again")
    for one in found["missing"]:
        click.echo(f"disk that is not there: {one['hypervisor']}/{one['domain']} has {one['export']}")
    for export in found["unattached_disks"]:
        click.echo(f"attached to nothing: disk {export}")
    for vm in found["unattached_vms"]:
        click.echo(f"attached to nothing: VM {vm}")
    if not found["hypervisors"]:
        click.echo("no hypervisors: add one with blockdevctl hypervisor add NAME URI")


def show_domain(domain: dict[str, Any] | None) -> str:
    """kvm1/web, and its state when that is not the usual one."""
    if domain is None:
        return "-"
    state = "" if domain["state"] == "there" else f" ({domain['state']})"
    return f"{domain['hypervisor']}/{domain['name']}{state}"


@click.command(cls=Verb)
@click.argument("vms", metavar="VM...", type=values.VM, nargs=-1, required=True)
@click.option("--hypervisor", type=values.HYPERVISOR, metavar="NAME", required=True, help="Where.")
@at_once_option
@start_option
@pass_session
def register(session: Session, vms: tuple[str, ...], hypervisor: str, at_once: int | None, start: bool) -> int:
    """Define a domain for each VM, of its configuration, with a name, uuid, MAC addresses and disks of its own."""
    return registered(session, hypervisor, list(vms), at_once, start, {})


def check_hypervisor(session: Session, name: str) -> None:
    """Before anything is made that is to be registered there.  NotFound; Unavailable: it does not answer."""
    found = session.client.get(f"/hypervisors/{name}")
    if not found["is_reachable"]:
        raise Unavailable(f"nothing was made, as hypervisor {name} does not answer: {found['error']}")


def registered(
    session: Session, hypervisor: str, vms: list[str], at_once: int | None, start: bool, made: dict[str, Any]
) -> int:
    """Register them and show each one's outcome, also behind Ctrl-C; the exit status.  made: what else belongs in the document."""
    body = {"vms": vms, "at_once": at_once, "start": start}
    job = session.client.post(f"/hypervisors/{hypervisor}/registrations", body)
    title = f"registering {show_count(len(vms), 'VM')} with {hypervisor}"
    done = session.follow(
        job,
        title,
        "those registered until then stay",
        tell_cancelled=lambda result: show_registrations(session, {**made, **result}),
    )
    return show_registrations(session, {**made, **done})


def show_registrations(session: Session, document: dict[str, Any]) -> int:
    """The exit status: whether all were registered, and started when that was asked for."""
    results = document["registrations"]

    def tell() -> None:
        rows = [[one["vm"], one["domain"] or "-", one["state"], one["error"] or ""] for one in results]
        print_columns(["VM", "DOMAIN", "STATE", "ERROR"], rows)

    session.show(document, tell)
    return BlockdevError.exit_status if any(one["error"] for one in results) else 0


@click.command(cls=Verb)
@click.argument("name", metavar="VM", type=values.VM)
@click.option("--force", is_flag=True, help="End the domain first, as by pulling the plug.")
@yes_option
@pass_session
def unregister(session: Session, name: str, force: bool, yes: bool) -> None:
    """Undefine the domain that was made for a VM; the VM and its disks stay."""
    found = session.client.get(f"/vms/{name}")
    if found["domain"] is None:
        raise NotFound(f"VM {name} is not registered with a hypervisor: blockdevctl vm list shows which are")
    where = show_domain(found["domain"])
    ask(f"{'end and ' if force else ''}undefine domain {where} with its UEFI variables and saved state", yes)
    gone = session.client.delete(f"/vms/{name}/domain", force=force)
    session.say(gone, f"undefined domain {where}; VM {name} and its disks are as they were")
