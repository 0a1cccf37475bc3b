"""blockdevctl pool: the pool and the two processes."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_fields, show_count, show_size
from blockdev.cli.session import Noun, Session, pass_session
from blockdev.errors import Corrupt


@click.group(cls=Noun)
def pool() -> None:
    """The pool and the processes that serve it."""


@pool.command()
@pass_session
def status(session: Session) -> None:
    """Show both processes, what they hold and how full the pool is."""
    found = session.client.get("/status")
    session.show(found, lambda: _tell_status(session, found))


def _tell_status(session: Session, found: dict[str, Any]) -> None:
    engine = found["engine"]
    fields = [("home", str(session.home.path))]
    if found["engine_running"]:
        fields.append(("engine", f"running, pid {engine['pid']}, {engine['plugin']} plugin"))
        fields.append(("attached", show_count(engine["attachment_count"], "client")))
        fields += _space(engine)
    else:
        fields.append(("engine", f"not running: {found['engine_error']}"))
    fields.append(("VMs", f"{found['vm_count']} with {show_count(found['disk_count'], 'disk')}"))
    fields.append(("snapshots", str(found["snapshot_count"])))
    fields += [("missing", export) for export in found["missing"]]
    fields += [("not ours", name) for name in found["foreign"]]
    fields += [("importing", f"{i['vm']}/{i['disk']}") for i in found["imports"]]
    print_fields(fields)


def _space(engine: dict[str, Any]) -> list[tuple[str, str]]:
    stats = engine["stats"]
    capacity, used = engine["capacity_bytes"], stats["used_bytes"]
    fields = [("pool", f"{show_size(used)} used of {show_size(capacity)} ({used / capacity:.0%})")]
    if stats["poisoned"]:
        fields.append(("POISONED", "a write to the log failed: writes are refused until serve is started again"))
    if stats["checksum_errors"]:
        fields.append(("DAMAGED", f"{show_count(stats['checksum_errors'], 'block')} did not verify: run pool scrub"))
    return fields


@pool.command()
@click.option("--capacity", type=values.SIZE_VALUE, required=True, help="How much the pool may hold from now on.")
@pass_session
def resize(session: Session, capacity: int) -> None:
    """Change the pool's capacity while it is served."""
    changed = session.client.patch("/pool", {"capacity_bytes": capacity})
    session.say(changed, f"the pool may hold {show_size(changed['engine']['capacity_bytes'])} now")


@pool.command()
@pass_session
def check(session: Session) -> None:
    """Verify the pool's structure."""
    _find(session, "check")


@pool.command()
@pass_session
def scrub(session: Session) -> None:
    """Read and verify all data of the pool."""
    _find(session, "scrub")


def _find(session: Session, kind: str) -> None:
    found = session.follow(session.client.post(f"/pool/{kind}"), f"{kind} of the pool")
    session.show(found, lambda: _tell_findings(kind, found["findings"]))
    if found["findings"]:
        raise Corrupt(f"the {kind} of the pool found {show_count(len(found['findings']), 'fault')}")


def _tell_findings(kind: str, findings: list[str]) -> None:
    for finding in findings:
        click.echo(finding)
    if not findings:
        click.echo(f"{kind}: the pool is sound")
