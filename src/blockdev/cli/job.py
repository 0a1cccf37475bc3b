"""blockdevctl job: what was asked of the control plane, and how it went."""

from __future__ import annotations

import json
from typing import Any

import click

from blockdev.cli.hypervisor import show_registrations
from blockdev.cli.output import print_columns, print_fields
from blockdev.cli.pool import tell_inspected
from blockdev.cli.progress import FINISHED
from blockdev.cli.session import INTERRUPTED_STATUS, Noun, Session, pass_session
from blockdev.errors import InvalidArgument
from blockdev.written import show_count, show_size

STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")


@click.group(cls=Noun)
def job() -> None:
    """What was asked of the control plane: what runs, and how the rest ended."""


@job.command(name="list")
@click.option("--state", type=click.Choice(STATES), help="In this state only.")
@click.option("--kind", metavar="KIND", help="Of this kind only: snapshot.create, or snapshot for all that is done with one.")
@click.option("--subject", metavar="NAME", help="On this VM, disk or snapshot only.")
@click.option("--caller", metavar="NAME", help="Asked by this one only: owner, a token's name, schedules.")
@click.option("--count", type=click.IntRange(1, 1000), default=30, show_default=True)
@pass_session
def list_(session: Session, **asked: Any) -> None:
    """List jobs, the newest first."""
    found = session.client.get("/jobs", **asked)

    def tell() -> None:
        rows = [
            [one["id"], one["created"], one["kind"], one["subject"], one["caller"], _standing(one)] for one in found["jobs"]
        ]
        print_columns(["JOB", "BEGAN", "KIND", "ON", "BY", "STATE"], rows)
        if not rows:
            click.echo("no jobs")

    session.show(found, tell)


@job.command()
@click.argument("id", metavar="JOB")
@pass_session
def show(session: Session, id: str) -> None:
    """Show a job: how far it is, or how it ended."""
    found = session.client.get(_path(id))
    session.show(found, lambda: _tell(found))


@job.command()
@click.argument("id", metavar="JOB")
@pass_session
def watch(session: Session, id: str) -> int:
    """Show a job's progress until it ends; fails as it fails, or as the command would that began it.

    Ctrl-C ends the watching, and the job goes on.
    """
    found = session.client.get(_path(id))
    title = f"{found['kind']} of {found['subject']}"
    try:
        result = session.follow(found, title, f"see blockdevctl job show {id}", cancels=False)
    except KeyboardInterrupt:
        click.echo(f"{title} goes on: blockdevctl job watch {id}", err=True)
        return INTERRUPTED_STATUS
    noun, _, verb = found["kind"].partition(".")
    fields = result if isinstance(result, dict) else {}
    if noun == "pool" and "findings" in fields:
        tell_inspected(session, verb, result)
    elif "registrations" in fields:
        return show_registrations(session, result)
    else:
        session.say(result, f"{title}: done")
    return 0


@job.command()
@click.argument("id", metavar="JOB")
@pass_session
def cancel(session: Session, id: str) -> None:
    """Stop a job, and take back what it did."""
    found = session.client.delete(_path(id))
    while found["state"] not in FINISHED:
        found = session.client.get(_path(id), after=found["version"], wait_seconds=10)
    session.say(found, f"{found['kind']} of {found['subject']}: {found['state']}")


def _path(id: str) -> str:
    if not (id.isascii() and id.isalnum()):
        raise InvalidArgument(f"{id!r} is no job: blockdevctl job list shows them")
    return f"/jobs/{id}"


def _standing(found: dict[str, Any]) -> str:
    if found["state"] == "running" and found["total_bytes"]:
        return f"running, {found['fraction']:.0%}"
    return f"{found['state']}: {found['error']['message']}" if found["error"] else str(found["state"])


def _tell(found: dict[str, Any]) -> None:
    fields = [
        ("job", found["id"]),
        ("kind", found["kind"]),
        ("on", found["subject"]),
        ("by", found["caller"]),
        ("began", found["created"]),
        ("ended", found["finished"] or "-"),
        ("state", _standing(found)),
    ]
    if found["total_bytes"]:
        fields.append(("progress", f"{show_size(found['done_bytes'])} of {show_size(found['total_bytes'])}"))
    result = found["result"] if isinstance(found["result"], dict) else {}
    fields += [(name, _shown(value)) for name, value in result.items()]
    print_fields(fields)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        words = [one for one in value if isinstance(one, str)]
        return ", ".join(words) if len(words) == len(value) else show_count(len(value), "item")
    return value if isinstance(value, str) else json.dumps(value)
