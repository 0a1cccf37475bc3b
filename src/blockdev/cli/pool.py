"""blockdevctl pool: the pool and the two processes."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_fields, warn_of_room
from blockdev.cli.policy import pool_policy
from blockdev.cli.session import Noun, Session, detach_option, pass_session
from blockdev.cli.usage import pool_usage
from blockdev.errors import Corrupt, InvalidArgument, NearlyFull, Poisoned, PoolFull, Unavailable
from blockdev.findings import InspectionKind
from blockdev.written import show_count, show_size

STATUS_FINDINGS_MAX = 20


@click.group(cls=Noun)
def pool() -> None:
    """The pool and the processes that serve it."""


pool.add_command(pool_policy)
pool.add_command(pool_usage)


@pool.command()
@click.option("--check", is_flag=True, help="Fail when something calls for somebody: for monitoring.")
@pass_session
def status(session: Session, check: bool) -> None:
    """Show both processes, what they hold and how full the pool is.

    With --check the exit status is 11 when the engine is away, 10 when it refuses writes, 8 when damage is known, 7 when the
    pool is critically full, 15 when it is filling up.
    """
    found = session.client.get("/status")
    session.show(found, lambda: _tell_status(session, found))
    if check:
        _require_well(found)


def _require_well(found: dict[str, Any]) -> None:
    """The worst of what is wrong, as the error that it is."""
    if not found["engine_running"]:
        raise Unavailable(f"the engine is not running: {found['engine_error']}")
    stats, known = found["engine"]["stats"], found["inspections"]
    if stats["poisoned"]:
        raise Poisoned("a write to the log failed: start serve again")
    if stats["checksum_errors_since_scrub"]:
        raise Corrupt(_unscrubbed(stats))
    if known and (known["findings"] or known["more_findings"]):
        raise Corrupt("damage is known: pool status names it and says what to do")
    is_below = _room(found["engine"]) < found["engine"]["capacity_bytes"]
    relief = "make room on the file system below the pool" if is_below else "raise the capacity with pool resize"
    advice = f"{show_size(stats['available_bytes'])} left: delete something, or {relief}"
    if stats["level"] == "critical":
        raise PoolFull(f"the pool is critically full, {advice}")
    if stats["level"] == "warning":
        raise NearlyFull(f"the pool is filling up, {advice}")


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
    if found["inspections"] is not None:
        fields += _inspections(found["inspections"])
    if found["compaction"] is not None:
        fields.append(_running(found["compaction"]))
    print_fields(fields)


def _inspections(known: dict[str, Any]) -> list[tuple[str, str]]:
    """When the pool was looked at, and what is wrong."""
    fields = [(f"last {kind}", _when(known[f"last_{kind}"])) for kind in ("check", "scrub")]
    if known["running"] is not None:
        fields.append(_running(known["running"]))
    fields += [("DAMAGED", tell_finding(finding)) for finding in known["findings"][:STATUS_FINDINGS_MAX]]
    more = known["more_findings"] + len(known["findings"][STATUS_FINDINGS_MAX:])
    if more:
        fields.append(("DAMAGED", f"and {more} more: pool status --json names what is known"))
    if known["findings"] or more:
        fields.append(("to do", "restore a snapshot or a copy that is whole, or overwrite or delete what is named; then pool scrub looks again"))
    return fields


def _running(progress: dict[str, Any]) -> tuple[str, str]:
    done, total = progress["done_bytes"], progress["total_bytes"]
    return progress["kind"], f"running, {done / max(total, 1):.0%} ({show_size(done)} of {show_size(total)})"


def _when(ran: dict[str, Any] | None) -> str:
    if ran is None:
        return "never"
    found = f"found {show_count(ran['finding_count'], 'fault')}" if ran["finding_count"] else "sound"
    healed = f", {ran['healed_count']} bad copies written anew" if ran["healed_count"] else ""
    return f"{ran['finished']}, {show_size(ran['read_bytes'])}, {found}{healed}"


def tell_finding(finding: dict[str, Any]) -> str:
    """VM web, disk root, snapshot monday, bytes 4096 to 8191: what is wrong."""
    if finding["vm"] is None:
        place = finding["object"]
    else:
        snapshot = f", snapshot {finding['snapshot']}" if finding["snapshot"] else ""
        place = f"VM {finding['vm']}, disk {finding['disk']}{snapshot}"
    if finding["length"]:
        place += f", bytes {finding['offset']} to {finding['offset'] + finding['length'] - 1}"
    return f"{place}: {finding['what']}" if place else finding["what"]


def _space(engine: dict[str, Any]) -> list[tuple[str, str]]:
    stats = engine["stats"]
    capacity, used = engine["capacity_bytes"], stats["used_bytes"]
    fields = [("pool", f"{show_size(used)} used of {show_size(capacity)} ({used / capacity:.0%})")]
    if _room(engine) < capacity:
        fields.append(("file system", f"has room for {show_size(_room(engine))}: the pool is full when it is"))
    if stats["level"] != "ok":
        fields.append((stats["level"].upper(), f"{show_size(stats['available_bytes'])} left for guests' data"))
    if stats["poisoned"]:
        fields.append(("POISONED", "a write to the log failed: writes are refused until serve is started again"))
    if stats["checksum_errors_since_scrub"]:
        fields.append(("DAMAGED", _unscrubbed(stats)))
    return fields


def _unscrubbed(stats: dict[str, Any]) -> str:
    count = show_count(stats["checksum_errors_since_scrub"], "read")
    return f"{count} met a block that did not verify, since the last scrub: run pool scrub, which says whose it is"


def _room(engine: dict[str, Any]) -> int:
    """How large the pool can become on its file system."""
    stats: dict[str, int] = engine["stats"]
    return stats["used_bytes"] + stats["file_system_available_bytes"]


@pool.command()
@click.option("--capacity", type=values.SIZE_VALUE, required=True, help="How much the pool may hold from now on.")
@pass_session
def resize(session: Session, capacity: int) -> None:
    """Change the pool's capacity while it is served."""
    changed = session.client.patch("/pool", {"capacity_bytes": capacity})
    warn_of_room(changed["engine"]["capacity_bytes"], _room(changed["engine"]))
    session.say(changed, f"the pool may hold {show_size(changed['engine']['capacity_bytes'])} now")


rate_option = click.option(
    "--rate", type=values.READ_RATE, metavar="SIZE", help="Read at most so much in a second, like 100M (default: no limit)."
)


offline_option = click.option("--offline", is_flag=True, help="Look at a pool that is not served; change nothing.")
pool_argument = click.argument("pool_path", metavar="[POOL]", required=False, type=values.PATH)


@pool.command()
@rate_option
@offline_option
@detach_option
@pool_argument
@pass_session
def check(session: Session, rate: int | None, offline: bool, detach: bool, pool_path: str | None) -> None:
    """Verify what describes data: superblocks, maps, batch headers, indexes.

    With --offline no server is needed, POOL may be any pool's directory, and nothing is healed.
    """
    _inspect(session, "check", rate, offline, detach, pool_path)


@pool.command()
@rate_option
@offline_option
@detach_option
@pool_argument
@pass_session
def scrub(session: Session, rate: int | None, offline: bool, detach: bool, pool_path: str | None) -> None:
    """Check, and read and verify all data of the pool.

    Guests go on meanwhile; Ctrl-C ends it without harm.  What it finds is shown by pool status until it is gone.
    With --offline no server is needed, POOL may be any pool's directory, and nothing is healed or kept.
    """
    _inspect(session, "scrub", rate, offline, detach, pool_path)


def _inspect(
    session: Session, kind: InspectionKind, rate_bytes: int | None, offline: bool, detach: bool, pool_path: str | None
) -> None:
    if offline and detach:
        raise InvalidArgument("--offline is done by this command itself, which cannot leave it")
    title = f"{kind} of the pool"
    if offline:
        from blockdev.cli.offline import inspect  # which takes as long to load as all the rest

        tell_inspected(session, kind, inspect(session, kind, rate_bytes, pool_path, title))
        return
    if pool_path is not None:
        raise InvalidArgument("only --offline looks at another pool than the one that is served")
    job = session.client.post(f"/pool/{kind}", {"rate_bytes": rate_bytes})
    if detach:
        session.leave(job)
        return
    tell_inspected(session, kind, session.follow(job, title))


def tell_inspected(session: Session, kind: str, found: dict[str, Any]) -> None:
    """What a check or scrub found; Corrupt: something."""
    session.show(found, lambda: _tell_findings(kind, found))
    count = len(found["findings"]) + found["more_findings"]
    if count:
        raise Corrupt(f"the {kind} of the pool found {show_count(count, 'fault')}")


def _tell_findings(kind: str, found: dict[str, Any]) -> None:
    for line in found["healed"]:
        click.echo(f"healed: {line}")
    for finding in found["findings"]:
        click.echo(tell_finding(finding))
    if found["more_findings"]:
        click.echo(f"and {found['more_findings']} more")
    if not found["findings"]:
        click.echo(f"{kind}: the pool is sound, {show_size(found['read_bytes'])} read")


@pool.command()
@rate_option
@detach_option
@pass_session
def compact(session: Session, rate: int | None, detach: bool) -> None:
    """Give back the space of what was deleted, overwritten or discarded, and compress what stays.

    Guests go on meanwhile; Ctrl-C ends it without harm, and what was given back until then stays so.
    """
    job = session.client.post("/pool/compact", {"rate_bytes": rate})
    if detach:
        session.leave(job)
        return
    found = session.follow(job, "compaction of the pool", if_cancelled="what was given back until then stays so")
    session.show(found, lambda: _tell_compacted(found))


def _tell_compacted(found: dict[str, Any]) -> None:
    removed = f"{show_count(found['segments_removed'], 'segment')} removed, {found['segments_rewritten']} rewritten"
    freed, live = show_size(found["freed_bytes"]), show_size(found["live_bytes"])
    click.echo(f"compact: {freed} given back, {removed}; {live} of live data")
    for reason in found["kept"]:
        click.echo(f"kept: {reason}")
