"""blockdevctl replicate path: the ways to other homes."""

from __future__ import annotations

import sys
from typing import Any

import click

from blockdev.addresses import show_address
from blockdev.cli import values
from blockdev.cli.output import ask, print_columns, print_fields
from blockdev.cli.peer import NAME, key_of_peer, key_option
from blockdev.cli.session import Noun, Session, pass_session, yes_option
from blockdev.errors import InvalidArgument
from blockdev.written import show_count, show_link_rate, show_size, show_speed

LEVEL_MAX = 19
level_option = click.option("--level", type=click.IntRange(0, LEVEL_MAX), help="Of zstd (default: 3); 0: nothing is compressed.")


@click.group(cls=Noun)
def path() -> None:
    """Ways to other homes, which VMs are replicated over."""


@path.command()
@click.argument("name", type=NAME)
@click.argument("endpoint", metavar="HOST[:PORT]", type=values.ENDPOINT_VALUE)
@click.option("--code", metavar="CODE|-", help="That replicate peer invite showed there; -: asked for, or read from standard input.")
@key_option
@click.option("--peer", "peer_name", type=NAME, metavar="PEER", help="The home that is known as this peer.")
@level_option
@pass_session
def add(
    session: Session,
    name: str,
    endpoint: values.Endpoint,
    code: str | None,
    key: str | None,
    peer_name: str | None,
    level: int | None,
) -> None:
    """Say how another home is reached, and how it proves to be that one: by an invitation's code, or by its key.

    A code pairs the two: the other home knows this one then, too.
    """
    if sum(one is not None for one in (code, key, peer_name)) != 1:
        raise InvalidArgument("say how to know the other home: --code CODE of its invitation, --key KEY, or --peer PEER")
    body: dict[str, Any] = {"name": name, "host": endpoint.host}
    body |= {} if endpoint.port is None else {"port": endpoint.port}
    body |= {} if level is None else {"level": level}
    if code is not None:
        body["code"] = _secret(code)
    else:
        body["key"] = key if key is not None else key_of_peer(session, peer_name or "")
    made = session.client.post("/replication/paths", body)
    place = f"{show_place(made)}, {made['fingerprint']}"
    if code is not None:
        session.say(made, f"added path {name} to {place}, and paired with it; next: blockdevctl replicate protect VM --path {name}")
    else:
        session.say(made, f"added path {name} to {place}; next: blockdevctl replicate path test {name}")


def _secret(code: str) -> str:
    """The code, from where nobody else sees it if that was asked for."""
    if code != "-":
        return code
    return str(click.prompt("code", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()


def show_place(found: dict[str, Any]) -> str:
    return show_address(found["host"], found["port"])


@path.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """List the paths, and whether they are connected."""
    found = session.client.get_all("/replication/paths", "paths")

    def tell() -> None:
        rows = [
            [
                *(one["name"], show_place(one), one["peer"] or "-", str(one["protected_count"]), str(one["running_count"])),
                *(show_link_rate(one["throttle"].get("rate_bytes")), show_speed(one["network_bytes_per_second"]), _connection(one)),
            ]
            for one in found["paths"]
        ]
        headers = ["PATH", "TO", "PEER", "VMS", "RUNNING", "LIMIT", "NOW", "CONNECTED"]
        print_columns(headers, rows, right=(3, 4, 5, 6))
        if not rows:
            click.echo("no paths: add one with blockdevctl replicate path add NAME HOST --code CODE")

    session.show(found, tell)


@path.command()
@click.argument("name", type=NAME)
@pass_session
def show(session: Session, name: str) -> None:
    """Show a path: where it goes, which key the other end must have, how fast it may send."""
    found = session.client.get(f"/replication/paths/{name}")

    def tell() -> None:
        print_fields(
            [
                ("path", found["name"]),
                ("to", show_place(found)),
                ("key", found["key"]),
                ("fingerprint", found["fingerprint"]),
                ("peer", found["peer"] or "-"),
                ("level", f"{found['level']} of zstd" if found["level"] else "not compressed"),
                *_throttle_fields(found["throttle"]),
                ("protected", show_count(found["protected_count"], "VM")),
                ("running", show_count(found["running_count"], "transfer")),
                ("now", show_speed(found["network_bytes_per_second"])),
                ("connected", _connection(found)),
                ("created", found["created"]),
            ]
        )

    session.show(found, tell)


@path.command()
@click.argument("name", type=NAME)
@pass_session
def test(session: Session, name: str) -> None:
    """Connect to the other end, and say what it is and what it takes."""
    found = session.client.post(f"/replication/paths/{name}/test")

    def tell() -> None:
        print_fields(
            [
                ("path", f"{found['path']} works"),
                ("round trip", f"{found['rtt_ms']:.1f} ms"),
                ("other end", f"{found['software']}, protocol {found['version']}, {', '.join(found['features']) or 'no features'}"),
                ("known there as", found["peer"]),
                ("may send there", ", ".join(found["vms"]) or "nothing: blockdevctl replicate peer change --allow there lets it"),
                ("space there", "no limit" if found["space_bytes"] is None else f"at most {show_size(found['space_bytes'])}"),
                ("path back", found["path_back"] or "none: reverse needs one"),
            ]
        )

    session.show(found, tell)


@path.command()
@click.argument("name", type=NAME)
@click.option("--to", "endpoint", type=values.ENDPOINT_VALUE, metavar="HOST[:PORT]", help="Where the same home is reached now.")
@key_option
@level_option
@pass_session
def change(session: Session, name: str, endpoint: values.Endpoint | None, key: str | None, level: int | None) -> None:
    """Say where the other home is reached now, which key it has now, or how much the path compresses; transfers that begin follow."""
    body: dict[str, Any] = {} if level is None else {"level": level}
    if endpoint is not None:
        body |= {"host": endpoint.host, "port": endpoint.port}
    if key is not None:
        body["key"] = key
    if not body:
        raise InvalidArgument("say what to change: --to HOST[:PORT], --key KEY or --level N")
    changed = session.client.patch(f"/replication/paths/{name}", body)
    how = f"compresses at level {changed['level']}" if changed["level"] else "does not compress"
    place = show_place(changed) if key is None else f"{show_place(changed)}, {changed['fingerprint']},"
    session.say(changed, f"path {name} leads to {place} and {how}")


@path.command()
@click.argument("name", type=NAME)
@click.option("--rate", type=values.LINK_RATE, metavar="MB/s|none", help="Outside of all windows, such as 20 or 2.5.")
@click.option(
    *("--window", "windows"),
    type=values.WINDOW,
    multiple=True,
    metavar="WHEN=MB/s",
    help="Another rate at a time, such as 'mon-fri 08:00-18:00=20'; repeat for more; they replace those that there were.",
)
@click.option("--zone", metavar="ZONE", help="Of the windows, like Europe/Zurich (default: this machine's).")
@click.option("--clear", is_flag=True, help="No limit at any time.")
@pass_session
def throttle(
    session: Session, name: str, rate: int | None, windows: tuple[tuple[str, int], ...], zone: str | None, clear: bool
) -> None:
    """Show or say how fast a path may send, in MB (10^6 bytes) a second; what is being sent follows at once.

    What is not said stays.  All VMs of a path share it.
    """
    given = rate is not None or windows or zone is not None
    if clear and given:
        raise InvalidArgument("--clear stands alone: it takes the rate and all windows away")
    found = session.client.get(f"/replication/paths/{name}")
    if clear or given:
        body: dict[str, Any] = {} if clear else {field: found["throttle"].get(field) for field in ("rate_bytes", "zone")}
        body["windows"] = [] if clear else found["throttle"].get("windows", [])
        if rate is not None:
            body["rate_bytes"] = rate or None
        if windows:
            body["windows"] = [{"at": at, "rate_bytes": window or None} for at, window in windows]
        if zone is not None:
            body["zone"] = zone
        found = session.client.patch(f"/replication/paths/{name}", {"throttle": body})
    session.show(found, lambda: print_fields([("path", name), *_throttle_fields(found["throttle"])]))


@path.command()
@click.argument("name", type=NAME)
@click.option("--force", is_flag=True, help="Also when VMs are protected over it: they are not any more.")
@yes_option
@pass_session
def remove(session: Session, name: str, force: bool, yes: bool) -> None:
    """Forget a path; what is at its other end stays there."""
    found = session.client.get(f"/replication/paths/{name}")
    if force and found["protected_count"]:
        ask(f"forget path {name}, and replicate {show_count(found['protected_count'], 'VM')} over it no more", yes)
    gone = session.client.delete(f"/replication/paths/{name}", force=force)
    session.say(gone, f"removed path {name} to {show_place(gone)}")


def _connection(found: dict[str, Any]) -> str:
    if found["connected"]:
        return "yes"
    return f"no: {found['error']}" if found["error"] else "no"


def _throttle_fields(throttle: dict[str, Any]) -> list[tuple[str, str]]:
    windows = throttle.get("windows", [])
    fields = [("limit", show_link_rate(throttle.get("rate_bytes")) + (" outside of the windows" if windows else ""))]
    zone = f" ({throttle['zone']})" if throttle.get("zone") else ""
    return fields + [("limit", f"{show_link_rate(one['rate_bytes'])} {one['at']}{zone}") for one in windows]
