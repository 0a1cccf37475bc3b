"""blockdevctl replicate peer: the homes that may send VMs to this one, and what each may send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blockdev.addresses import Address
from blockdev.cli import values
from blockdev.cli.output import ask, print_columns, print_fields
from blockdev.cli.session import Noun, Session, pass_session, read_text, yes_option
from blockdev.constants import INVITATION_SECONDS_MAX, REPLICATION_PORT
from blockdev.errors import InvalidArgument, NotFound
from blockdev.vmmap.names import check_name
from blockdev.written import show_period, show_size

ALL_VMS = ("*",)
Command = TypeVar("Command", bound=Callable[..., Any])


def parse_key_or_file(text: str) -> str:
    """A public key, or that of the file of this name.  Raises InvalidArgument, NotFound."""
    if text.startswith("ssh-"):
        return text
    try:
        content = read_text(values.parse_path(text))
    except NotFound:
        raise NotFound(f"{text} is neither a public key, which begins with ssh-ed25519, nor a file") from None
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise InvalidArgument(f"{text} holds {len(lines)} lines, not one public key: write there what replicate identity shows")
    return lines[0].strip()


KEY = values.Value("key|file", parse_key_or_file)
NAME = values.Value("name", lambda text: check_name("peer or path", text))
key_option = click.option("--key", type=KEY, metavar="KEY|FILE", help="Its public key, as replicate identity shows it there.")


def limit_options(command: Command) -> Command:
    """What a peer may send."""
    for option in (
        click.option("--space", type=values.SIZE_VALUE, metavar="SIZE", help="What all it sends may take (default: no limit)."),
        click.option("--no-vms", is_flag=True, help="It may send nothing."),
        click.option("--vm", "globs", multiple=True, metavar="GLOB", help="A VM that it may send, such as 'web-*'; repeat for more."),
    ):
        command = option(command)
    return command


@click.group(cls=Noun)
def peer() -> None:
    """Homes that may send VMs to this one."""


@peer.command()
@click.argument("name", type=NAME)
@limit_options
@click.option("--for", "seconds", type=values.DURATION, metavar="DURATION", help="How long the code is valid (default: 10m).")
@pass_session
def invite(session: Session, name: str, globs: tuple[str, ...], no_vms: bool, space: int | None, seconds: int | None) -> None:
    """Show a code by which another home is paired with this one, once.

    Without --vm it may send any VM.
    """
    if seconds is not None and seconds > INVITATION_SECONDS_MAX:
        raise InvalidArgument(f"a code is valid for {show_period(INVITATION_SECONDS_MAX)} at the most: say --for 12h, or make another one later")
    body = {"vms": _globs(globs, no_vms, ALL_VMS), "space_bytes": space, **({} if seconds is None else {"seconds": seconds})}
    made = session.client.put(f"/replication/invitations/{name}", body)
    listening = None if session.json else session.client.get("/replication/identity")["listening"]

    def tell() -> None:
        click.echo(made["code"])
        click.echo(f"valid once, until {made['expires']}; on the other home, with a name for this one:", err=True)
        click.echo(f"  blockdevctl replicate path add NAME {_place(listening)} --code CODE", err=True)

    session.show(made, tell)


def _place(listening: str | None) -> str:
    """HOST:PORT as somebody else may type it; HOST for an address that stands for all of the machine's."""
    if listening is None:
        return f"HOST:{REPLICATION_PORT}"
    address = Address.parse(listening)
    return f"HOST:{address.port}" if address.is_unspecified() else str(address)


@peer.command()
@click.argument("name", type=NAME)
@key_option
@click.option("--path", "way", type=NAME, metavar="PATH", help="The home that this path goes to.")
@limit_options
@pass_session
def add(
    session: Session, name: str, key: str | None, way: str | None, globs: tuple[str, ...], no_vms: bool, space: int | None
) -> None:
    """Let another home send VMs to this one.  Without --vm any."""
    if (key is None) == (way is None):
        raise InvalidArgument("say which home it is: --key KEY, or --path PATH if there is a path to it")
    if key is None:
        key = session.client.get(f"/replication/paths/{way}")["key"]
    body = {"name": name, "key": key, "vms": _globs(globs, no_vms, ALL_VMS), "space_bytes": space}
    made = session.client.post("/replication/peers", body)
    session.say(made, f"added peer {name}, {made['fingerprint']}: it may send {_limits(made)}")


@peer.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """List the homes that may send VMs to this one."""
    found = session.client.get_all("/replication/peers", "peers")

    def tell() -> None:
        rows = [
            [
                *(one["name"], _vms(one), _space(one), str(len(one["received"])), one["path"] or "-"),
                "yes" if one["connected"] else "no",
            ]
            for one in found["peers"]
        ]
        print_columns(["PEER", "MAY SEND", "SPACE", "RECEIVED VMS", "PATH TO IT", "CONNECTED"], rows, right=(3,))
        if not rows:
            click.echo("no peers: blockdevctl replicate peer invite NAME lets another home send VMs to this one")

    session.show(found, tell)


@peer.command()
@click.argument("name", type=NAME)
@pass_session
def show(session: Session, name: str) -> None:
    """Show a peer: its key, what it may send and what it has sent."""
    found = session.client.get(f"/replication/peers/{name}")

    def tell() -> None:
        used = "unknown" if found["used_bytes"] is None else show_size(found["used_bytes"])
        print_fields(
            [
                ("peer", found["name"]),
                ("key", found["key"]),
                ("fingerprint", found["fingerprint"]),
                ("may send", _vms(found)),
                ("space", f"{used} used, {_space(found)}"),
                ("received VMs", ", ".join(found["received"]) or "-"),
                ("path to it", found["path"] or "-"),
                ("connected", "yes" if found["connected"] else "no"),
                ("created", found["created"]),
            ]
        )

    session.show(found, tell)


@peer.command()
@click.argument("name", type=NAME)
@click.option("--vm", "globs", multiple=True, metavar="GLOB", help="These it may send, and no others.")
@click.option("--allow", "more", multiple=True, metavar="GLOB", help="These it may send, too.")
@click.option("--no-vms", is_flag=True, help="It may send nothing.")
@click.option("--space", metavar="SIZE|none", help="What all it sends may take.")
@key_option
@pass_session
def change(
    session: Session,
    name: str,
    globs: tuple[str, ...],
    more: tuple[str, ...],
    no_vms: bool,
    space: str | None,
    key: str | None,
) -> None:
    """Say anew what a peer may send, or what its key is; what is not said stays."""
    body: dict[str, Any] = {} if key is None else {"key": key}
    if globs or no_vms:
        body["vms"] = _globs(globs, no_vms, ())
    if more:
        if "vms" in body:
            raise InvalidArgument("say either --allow, which adds to what it may send, or --vm and --no-vms, which replace that")
        there = session.client.get(f"/replication/peers/{name}")["vms"]
        body["vms"] = [*there, *(glob for glob in more if glob not in there)]
    if space is not None:
        body["space_bytes"] = None if space.strip().lower() == "none" else values.parse_size(space)
    if not body:
        raise InvalidArgument("say what to change: --vm, --allow, --no-vms, --space or --key")
    changed = session.client.patch(f"/replication/peers/{name}", body)
    session.say(changed, f"peer {name} may send {_limits(changed)}")


@peer.command()
@click.argument("name", type=NAME)
@click.option("--force", is_flag=True, help="Also when VMs are received from it: they are VMs of this home then.")
@yes_option
@pass_session
def remove(session: Session, name: str, force: bool, yes: bool) -> None:
    """Let a home send nothing any more; the VMs that came from it stay."""
    found = session.client.get(f"/replication/peers/{name}")
    if force and found["received"]:
        ask(f"forget peer {name}, and make VMs of this home of {', '.join(found['received'])}", yes)
    gone = session.client.delete(f"/replication/peers/{name}", force=force)
    session.say(gone, f"removed peer {name}: it may send nothing any more")


def key_of_peer(session: Session, name: str) -> str:
    """NotFound, in the words of who looks for a path."""
    try:
        return str(session.client.get(f"/replication/peers/{name}")["key"])
    except NotFound:
        raise NotFound(f"there is no peer {name}: blockdevctl replicate peer list shows those that there are") from None


def _globs(globs: tuple[str, ...], no_vms: bool, default: tuple[str, ...]) -> list[str]:
    if globs and no_vms:
        raise InvalidArgument("say either --vm or --no-vms")
    return [] if no_vms else list(globs or default)


def _vms(found: dict[str, Any]) -> str:
    if found["vms"] == list(ALL_VMS):
        return "any VM"
    return ", ".join(found["vms"]) or "nothing"


def _space(found: dict[str, Any]) -> str:
    return "no limit" if found["space_bytes"] is None else f"at most {show_size(found['space_bytes'])}"


def _limits(found: dict[str, Any]) -> str:
    return _vms(found) + (f", {_space(found)}" if found["vms"] else "")
