"""blockdevctl events: what happened while nobody looked."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns
from blockdev.cli.session import Session, Verb, pass_session, until_interrupted

LEVELS = ("info", "warning", "error")
KINDS = ("agreement", "engine", "hypervisor", "job", "pool", "quiesce", "replication", "schedule", "snapshot", "target", "vm")
WAIT_SECONDS = 20


@click.command(cls=Verb)
@click.option("--vm", type=values.VM, metavar="VM", help="Of this VM only.")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="Of this level and worse ones.")
@click.option("--kind", type=click.Choice(KINDS), help="Of this kind only.")
@click.option("--count", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--follow", is_flag=True, help="Show the latest, then each new one as it comes, until Ctrl-C.")
@pass_session
def events(session: Session, count: int, follow: bool, **asked: Any) -> None:
    """List what was noted while nobody was there to be told; the newest first, with --follow the newest last.

    With --follow and --json each event is a line of its own.
    """
    found = session.client.get("/events", count=count, **asked)
    if follow:
        with until_interrupted():
            _follow(session, found["events"], asked)
        return

    def tell() -> None:
        rows = [[one["time"], one["level"], one["kind"], one["vm"] or "-", one["message"]] for one in found["events"]]
        print_columns(["TIME", "LEVEL", "KIND", "VM", "EVENT"], rows)
        if not rows:
            click.echo("nothing was noted")

    session.show(found, tell)


def _follow(session: Session, latest: list[dict[str, Any]], asked: dict[str, Any]) -> None:
    """Does not end by itself."""
    found = {"events": list(reversed(latest)), "next": str(latest[0]["id"]) if latest else "0"}
    while True:
        for one in found["events"]:
            line = f"{one['time']}  {one['level']:7}  {one['kind']:9}  {one['vm'] or '-'}  {one['message']}"
            click.echo(json.dumps(one, ensure_ascii=False) if session.json else line)
        sys.stdout.flush()
        found = session.client.get("/events", after=found["next"], wait_seconds=WAIT_SECONDS, **asked)
