"""blockdevctl events: what happened while nobody looked."""

from __future__ import annotations

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns
from blockdev.cli.session import Session, Verb, pass_session

LEVELS = ("info", "warning", "error")


@click.command(cls=Verb)
@click.option("--vm", type=values.VM, metavar="VM", help="Of this VM only.")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="Of this level and worse ones.")
@click.option("--count", type=click.IntRange(1, 1000), default=100, show_default=True)
@pass_session
def events(session: Session, vm: str | None, level: str, count: int) -> None:
    """List what was noted of schedules that failed, work again, or began anew; the newest first."""
    found = session.client.get("/events", vm=vm, level=level, count=count)

    def tell() -> None:
        rows = [[one["time"], one["level"], one["vm"] or "-", one["message"]] for one in found["events"]]
        print_columns(["TIME", "LEVEL", "VM", "EVENT"], rows)
        if not rows:
            click.echo("nothing was noted")

    session.show(found, tell)
