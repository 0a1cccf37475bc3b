"""blockdevctl target: VMs' disks over iSCSI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from blockdev.addresses import Address
from blockdev.cli import values
from blockdev.cli.output import print_columns, print_fields
from blockdev.cli.session import Noun, Session, pass_session, read_text
from blockdev.errors import InvalidArgument
from blockdev.targets.model import State
from blockdev.written import show_count, show_size

PORT = 3260
DEPTH_MAX = 1024
OTHERS = 0o077
Command = TypeVar("Command", bound=Callable[..., Any])


def _split(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """Of an option that is given several times, or once with commas."""
    return [one for text in given for one in text.split(",") if one]


OPTIONS = (
    click.option("--initiator", "initiators", metavar="IQN", multiple=True, callback=_split, help="Who may log in; may be given several times."),
    click.option("--chap-user", metavar="USER", help="Whom initiators say they are."),
    click.option("--chap-secret-file", metavar="FILE|-", help="What they prove it by; -: read from standard input."),
    click.option("--mutual-user", metavar="USER", help="Whom the target says it is (mutual CHAP)."),
    click.option("--mutual-secret-file", metavar="FILE|-", help="What it proves that by."),
    click.option("--portal", "portals", metavar="ADDR[:PORT]", multiple=True, callback=_split, help=f"Where it listens (default: 127.0.0.1:{PORT}); several for multipath."),
    click.option("--depth", type=click.IntRange(1, DEPTH_MAX), metavar="N", help="Commands that an initiator may have under way (default: 64)."),
    click.option("--snapshot", "snapshots", metavar="NAME", multiple=True, callback=_split, help="Its disks are read-only LUNs, too."),
    click.option("--insecure", is_flag=True, help="Listen off loopback although not both initiators and a CHAP secret are asked for."),
)


def target_options(command: Command) -> Command:
    """Those of a new target and of a change."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.group(cls=Noun)
def target() -> None:
    """iSCSI targets: a VM's disks as LUNs, by the kernel's LIO."""


@target.command()
@click.argument("name", metavar="VM", type=values.VM)
@target_options
@click.option("--demo", is_flag=True, help="Let any initiator log in.")
@pass_session
def add(session: Session, name: str, demo: bool, **options: Any) -> None:
    """Offer a VM's disks over iSCSI, each as a LUN."""
    body: dict[str, Any] = {"demo": demo, **_credentials(options)}
    for field in ("initiators", "portals", "snapshots"):
        if options[field]:
            body[field] = list(options[field])
    for field in ("depth", "insecure"):
        if options[field]:
            body[field] = options[field]
    made = session.client.post(f"/vms/{name}/target", body)
    _say(session, made, f"VM {name} is target {made['iqn']} with {show_count(len(made['luns']), 'LUN')} at {', '.join(made['portals'])}")


@target.command()
@click.argument("name", metavar="VM", type=values.VM)
@target_options
@click.option("--remove-initiator", "gone_initiators", metavar="IQN", multiple=True, help="Who may not any more; it is logged out.")
@click.option("--remove-portal", "gone_portals", metavar="ADDR[:PORT]", multiple=True, help="Where it is not to listen any more.")
@click.option("--remove-snapshot", "gone_snapshots", metavar="NAME", multiple=True, help="Its disks are no LUNs any more.")
@click.option("--no-chap", is_flag=True, help="No secret is asked for any more.")
@click.option("--no-mutual", is_flag=True, help="The target proves nothing any more.")
@click.option("--demo/--no-demo", default=None, help="Whether any initiator may log in.")
@pass_session
def change(session: Session, name: str, demo: bool | None, no_chap: bool, no_mutual: bool, **options: Any) -> None:
    """Change a target; what is not named stays."""
    was = session.client.get(f"/vms/{name}/target")
    body: dict[str, Any] = _credentials(options)
    if (no_chap and "chap" in body) or (no_mutual and "mutual" in body):
        raise InvalidArgument("a secret is given and taken away at once: leave one of the options out")
    body |= ({"chap": None, "mutual": None} if no_chap else {}) | ({"mutual": None} if no_mutual else {})
    body |= {} if demo is None else {"demo": demo}
    body |= {"depth": options["depth"]} if options["depth"] else {}
    body |= {"insecure": True} if options["insecure"] else {}
    there = {
        "initiators": was["initiators"],
        "portals": was["portals"],
        "snapshots": list(dict.fromkeys(lun["snapshot"] for lun in was["luns"] if lun["snapshot"])),
    }
    for field, names in there.items():
        added, gone = options[field], options[f"gone_{field}"]
        if added or gone:
            body[field] = _changed(field, names, [_full(field, one) for one in added], [_full(field, one) for one in gone])
    if not body:
        raise InvalidArgument(f"say what to change: see blockdevctl target change --help; blockdevctl target show {name} shows what there is")
    _say(session, session.client.patch(f"/vms/{name}/target", body), f"changed the target of VM {name}")


def _full(field: str, text: str) -> str:
    """As the API shows it."""
    if field == "portals":
        return str(Address.parse(text, PORT))
    return text.lower() if field == "initiators" else text


def _changed(field: str, names: list[str], added: list[str], gone: list[str]) -> list[str]:
    missing = [one for one in gone if one not in names]
    if missing:
        raise InvalidArgument(f"the target has no {field.removesuffix('s')} {missing[0]}: it has {', '.join(names) or 'none'}")
    return [one for one in dict.fromkeys([*names, *added]) if one not in gone]


@target.command(name="list")
@click.option("--state", type=click.Choice(get_args(State)), help="In this state only.")
@pass_session
def list_(session: Session, state: str | None) -> None:
    """List the targets, who is logged in, and what is wrong."""
    found = session.client.get_all("/targets", "targets", state=state)

    def tell() -> None:
        rows = [
            [one["vm"], one["state"], str(len(one["luns"])), str(len(one["sessions"])), ", ".join(one["portals"]), one["iqn"]]
            for one in found["targets"]
        ]
        print_columns(["VM", "STATE", "LUNS", "SESSIONS", "PORTALS", "IQN"], rows, right=(2, 3))
        for one in found["targets"]:
            for reason in one["reasons"]:
                click.echo(f"{one['vm']}: {reason}")
        if not rows:
            click.echo(f"no target is {state}" if state else "no targets: add one with blockdevctl target add VM --initiator IQN")

    session.show(found, tell)


@target.command()
@click.argument("name", metavar="VM", type=values.VM)
@pass_session
def show(session: Session, name: str) -> None:
    """Show a target: its LUNs, who may log in, who is."""
    found = session.client.get(f"/vms/{name}/target")
    session.show(found, lambda: _tell(found))


def _tell(one: dict[str, Any]) -> None:
    who = "anybody (demo mode)" if one["demo"] else ", ".join(one["initiators"]) or "nobody: target change --initiator IQN"
    mutual = f", which proves itself as {one['mutual_user']}" if one["mutual_user"] else ""
    print_fields(
        [
            ("target", one["iqn"]),
            ("VM", one["vm"]),
            ("state", "; ".join([one["state"], *one["reasons"]])),
            ("portals", ", ".join(one["portals"])),
            ("initiators", who),
            ("CHAP", f"as {one['chap_user']}{mutual}" if one["chap_user"] else "none"),
            ("depth", str(one["depth"])),
            ("logged in", ", ".join(one["sessions"]) or "nobody"),
        ]
    )
    rows = [
        [str(lun["number"]), lun["export"], show_size(lun["size_bytes"]), "ro" if lun["snapshot"] else "rw", lun["serial"], lun["error"] or ""]
        for lun in one["luns"]
    ]
    if rows:
        click.echo()
    print_columns(["LUN", "DISK", "SIZE", "", "SERIAL", ""], rows, right=(0, 2))


@target.command()
@click.argument("name", metavar="VM", type=values.VM)
@click.option("--force", is_flag=True, help="Cut off initiators that are logged in.")
@pass_session
def remove(session: Session, name: str, force: bool) -> None:
    """Offer a VM's disks over iSCSI no more; the VM and its disks stay."""
    gone = session.client.delete(f"/vms/{name}/target", force=force)
    session.say(gone, f"removed target {gone['iqn']}; VM {name} and its disks are as they were")


def _say(session: Session, made: dict[str, Any], sentence: str) -> None:
    def tell() -> None:
        click.echo(sentence)
        if not made["demo"] and not made["initiators"]:
            click.echo(f"nobody may log in yet: blockdevctl target change {made['vm']} --initiator IQN")
        for reason in made["reasons"]:
            click.echo(f"{made['state']}: {reason}", err=True)

    session.show(made, tell)


def _credentials(options: dict[str, Any]) -> dict[str, Any]:
    """Of the body, what proves who somebody is."""
    body = {}
    for way in ("chap", "mutual"):
        user, file = options.pop(f"{way}_user"), options.pop(f"{way}_secret_file")
        if (user is None) != (file is None):
            raise InvalidArgument(f"--{way}-user and --{way}-secret-file belong together: give both")
        if user is not None:
            body[way] = {"user": user, "secret": _secret(file)}
    return body


def _secret(path: str) -> str:
    """From where nobody else sees it."""
    if path == "-":
        return str(click.prompt("secret", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip("\r\n")
    text = read_text(path).strip("\r\n")
    if os.path.isfile(path) and os.stat(path).st_mode & OTHERS:
        raise InvalidArgument(f"{path} can be read by others: chmod 600 it first, or take a new secret")
    return text
