"""blockdevctl replicate protect, status and what goes with them: VMs whose snapshots go to other homes."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns, print_fields
from blockdev.cli.peer import NAME
from blockdev.cli.progress import display
from blockdev.cli.session import Session, Verb, pass_session, until_interrupted
from blockdev.errors import Behind, BlockdevError, from_code
from blockdev.written import show_duration, show_period, show_size, show_speed

WATCH_SECONDS = 2.0
WAIT_SECONDS = 0.5
DIRECTIONS = {"sent": "to", "received": "from", None: ""}
path_option = click.option("--path", "way", type=NAME, metavar="PATH", help="Over this path only (default: all of the VM's).")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@click.option("--path", "way", type=NAME, metavar="PATH", required=True, help="Where to.")
@click.option("--rpo", type=values.DURATION_OR_NONE, metavar="DURATION|none", help="How far it may be behind before that is an alert.")
@click.option(
    *("--keep", "keep_seconds"),
    type=values.DURATION_OR_FOREVER,
    metavar="DURATION|forever",
    help="How long snapshots are kept there that no schedule took (default: forever).",
)
@pass_session
def protect(session: Session, vm: str, way: str, rpo: int | None, keep_seconds: int | None) -> None:
    """Replicate a VM over a path: its newest snapshot, and each one that is taken from now on.

    Said again of one that is protected, it changes the terms that are said.
    """
    terms = {"rpo_seconds": rpo, "keep_seconds": keep_seconds}
    body = {field: seconds or None for field, seconds in terms.items() if seconds is not None}
    made = session.client.put(f"/vms/{vm}/protections/{way}", body)
    rpo_words = f"no more than {show_period(made['rpo_seconds'])} behind" if made["rpo_seconds"] else "without an RPO"
    kept = f"kept there for {show_period(made['keep_seconds'])}" if made["keep_seconds"] else "kept there until deleted"
    session.say(made, f"VM {vm} is replicated over path {way}, {rpo_words}; its snapshots that no schedule takes are {kept}")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@path_option
@pass_session
def unprotect(session: Session, vm: str, way: str | None) -> None:
    """Replicate a VM no more; what is at the other end stays there."""
    gone = session.client.delete(f"/vms/{vm}/protections", path=way)
    session.say(gone, f"VM {vm} is not replicated over {_ways(gone)} any more; what is there stays there")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@path_option
@pass_session
def pause(session: Session, vm: str, way: str | None) -> None:
    """Send nothing of a VM; what is being sent stops, and goes on from there after resume."""
    done = session.client.post(f"/vms/{vm}/replication/pause", {"path": way})
    session.say(done, f"the replication of VM {vm} over {_ways(done)} is paused")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@path_option
@pass_session
def resume(session: Session, vm: str, way: str | None) -> None:
    """Go on with a VM, at once, also after failures."""
    done = session.client.post(f"/vms/{vm}/replication/resume", {"path": way})
    session.say(done, f"the replication of VM {vm} over {_ways(done)} goes on")


def _ways(found: dict[str, Any]) -> str:
    names = [one["path"] for one in found["protections"]]
    return f"path{'s' if len(names) > 1 else ''} {', '.join(names)}"


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@path_option
@click.option("--wait", is_flag=True, help="Until it is there; Ctrl-C ends the waiting only.")
@pass_session
def now(session: Session, vm: str, way: str | None, wait: bool) -> None:
    """Take a snapshot of a VM and send it, and what waits, at once."""
    made = session.client.post(f"/vms/{vm}/replication/now", {"path": way})
    name, over = f"{vm}@{made['snapshot']}", ", ".join(made["paths"])
    if not wait:
        session.say(made, f"took {name}, which goes over {over}: blockdevctl replicate status {vm}")
        return
    _wait(session, vm, made)
    session.say(made, f"{name} is at the other end of {over}")


def _wait(session: Session, vm: str, made: dict[str, Any]) -> None:
    """Until the snapshot is at the other end of all of the paths.  Raises what it failed for."""
    lsn = session.client.get(f"/vms/{vm}/snapshots/{made['snapshot']}")["lsn"]
    total = 0
    with display(f"replicating {vm}@{made['snapshot']}", session.json) as shown:
        while True:
            found = session.client.get(f"/vms/{vm}/replication")["replications"]
            waiting = [one for one in found if one["way"] in made["paths"] and not _is_there(session, vm, one, made["snapshot"], lsn)]
            for one in waiting:
                if one["state"] in ("failed", "paused"):
                    raise from_code(one["error_code"] or BlockdevError.code, f"path {one['way']}: {one['reason'] or one['state']}")
            left = sum(one["bytes_remaining"] or 0 for one in waiting)
            total = max(total, left)
            state = "running" if waiting else "done"
            done = {"total_bytes": total, "done_bytes": total - left, "fraction": 1 - left / total if total else 0.0, "state": state}
            shown.show({**done, "fraction": 1.0} if not waiting else done)
            if not waiting:
                return
            time.sleep(WAIT_SECONDS)


def _is_there(session: Session, vm: str, one: dict[str, Any], snapshot: str, lsn: int) -> bool:
    """Whether the other end has that snapshot, or one that is newer."""
    if one["newest"] in (None, snapshot):
        return one["newest"] == snapshot
    return bool(session.client.get(f"/vms/{vm}/snapshots/{one['newest']}")["lsn"] >= lsn)


@click.command(cls=Verb)
@click.argument("vm", type=values.VM, required=False)
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C; with --json a line each.")
@click.option("--check", is_flag=True, help="Fail when something exceeds its RPO or failed: for monitoring; exit status 18.")
@pass_session
def status(session: Session, vm: str | None, watch: bool, check: bool) -> None:
    """Show how the replication of each VM is, or of one in full: what was sent, and what has come."""
    if watch:
        with until_interrupted():
            _watch(session, vm)
        return
    found = _status(session, vm)
    session.show(found, lambda: _tell_status(vm, found))
    if check:
        _require_well(found["replications"])


def _watch(session: Session, vm: str | None) -> None:
    """Does not end by itself."""
    while True:
        found = _status(session, vm)
        if session.json:
            click.echo(json.dumps(found, ensure_ascii=False))
        else:
            click.clear()
            _tell_status(vm, found)
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def _status(session: Session, vm: str | None) -> dict[str, Any]:
    found: dict[str, Any]
    if vm is None:
        found = session.client.get_all("/replication/status", "replications")
    else:
        found = session.client.get(f"/vms/{vm}/replication")
    return found


def _require_well(found: list[dict[str, Any]]) -> None:
    bad = [one for one in found if one["level"] == "error" or one["state"] in ("failed", "exceeds rpo")]
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise Behind(f"the replication of VM {bad[0]['vm']} {_way(bad[0])} {_trouble(bad[0])}{more}: see blockdevctl replicate status")


def _trouble(one: dict[str, Any]) -> str:
    if one["state"] == "exceeds rpo":
        lag = "is" if one["lag_seconds"] is None else f"is {show_duration(one['lag_seconds'])} behind and"
        return f"{lag} exceeds its RPO" + (f" of {show_period(one['rpo_seconds'])}" if one["rpo_seconds"] else "")
    return f"is {one['state']}" + (f": {one['reason']}" if one["reason"] else "")


def _way(one: dict[str, Any]) -> str:
    """to site-b, from site-a."""
    return f"{DIRECTIONS[one['direction']]} {one['way'] or '-'}".strip()


def _tell_status(vm: str | None, found: dict[str, Any]) -> None:
    listed = found["replications"]
    if vm is not None:
        for number, one in enumerate(listed):
            if number:
                click.echo()
            print_fields(_fields(one))
        return
    rows = [
        [
            *(one["vm"], _way(one), one["state"].upper() if one["level"] == "error" else one["state"]),
            *(one["newest"] or "-", _seconds(one["age_seconds"]), _remaining(one)),
            *(show_speed(one["network_bytes_per_second"]), _seconds(one["eta_seconds"] or None)),
        ]
        for one in listed
    ]
    print_columns(["VM", "WHERE", "STATE", "NEWEST COPY", "AGE", "TO SEND", "SPEED", "LEFT"], rows, right=(4, 5, 6, 7))
    for one in listed:
        if one["reason"]:
            click.echo(f"VM {one['vm']} {_way(one)}: {one['reason']}{_next_try(one)}")
    if not rows:
        click.echo("nothing is replicated: blockdevctl replicate protect VM --path PATH begins it; docs/replication.md says how")


def _fields(one: dict[str, Any]) -> list[tuple[str, str]]:
    """All that is known of one VM's replication in one direction."""
    fields = [("VM", one["vm"]), ("state", one["state"])]
    if one["direction"] is None:
        return fields
    fields.insert(1, ("replicated" if one["direction"] == "sent" else "received", _way(one)))
    if one["reason"]:
        fields.append(("reason", one["reason"] + _next_try(one)))
    if one["promoted"]:
        fields.append(("promoted", one["promoted"]))
    fields.append(("newest there" if one["direction"] == "sent" else "newest here", _newest(one)))
    if one["lag_seconds"] is not None:
        fields.append(("behind", show_duration(one["lag_seconds"]) if one["lag_seconds"] else "nothing"))
    fields.append(("RPO", show_period(one["rpo_seconds"]) if one["rpo_seconds"] else "none"))
    if one["direction"] == "sent":
        fields.append(("kept there", show_period(one["keep_seconds"]) if one["keep_seconds"] else "until deleted"))
        fields.append(("to send", _remaining(one)))
    if one["snapshot"]:
        fields.append(("on its way", one["snapshot"]))
        for what in ("logical", "network"):
            now, mean = one[f"{what}_bytes_per_second"], one[f"{what}_bytes_per_second_mean"]
            fields.append((f"{what} speed", f"{show_speed(now)} now, {show_speed(mean)} on average"))
    if one["eta_seconds"]:
        fields.append(("left", show_duration(one["eta_seconds"])))
    fields.append(("since", one["since"] or "-"))
    return fields


def _newest(one: dict[str, Any]) -> str:
    if one["newest_uuid"] is None:
        return "none yet"
    finished = f", there since {one['newest_finished']}" if one["newest_finished"] else ""
    age = "" if one["age_seconds"] is None else f", {show_duration(one['age_seconds'])} ago"
    return f"{one['newest'] or one['newest_uuid']} of {one['newest_created']}{age}{finished}"


def _remaining(one: dict[str, Any]) -> str:
    """1.2 GiB (2)."""
    count, left = one["snapshots_remaining"], one["bytes_remaining"]
    if not count:
        return "-" if count is None else "nothing"
    return ("?" if left is None else show_size(left)) + f" ({count})"


def _seconds(seconds: int | None) -> str:
    return "-" if seconds is None else show_duration(seconds)


def _next_try(one: dict[str, Any]) -> str:
    return f"; tried again at {one['next_try']}" if one["next_try"] else ""


@click.command(cls=Verb)
@click.argument("vm", type=values.VM, required=False)
@click.option("--count", type=click.IntRange(1, 1000), default=30, show_default=True)
@pass_session
def history(session: Session, vm: str | None, count: int) -> None:
    """List the snapshots that were sent and received, the newest first, and what of them went over the network."""
    found = session.client.get("/replication/transfers", vm=vm, count=count)

    def tell() -> None:
        rows = [
            [
                *(one["finished"], f"{one['vm']}@{one['snapshot']}", f"{DIRECTIONS[one['direction']]} {one['way']}"),
                *(show_size(one["logical_bytes"]), show_size(one["network_bytes"])),
                one["error_message"] or "whole",
            ]
            for one in found["transfers"]
        ]
        print_columns(["ENDED", "SNAPSHOT", "WHERE", "CHANGED", "NETWORK", "RESULT"], rows, right=(3, 4))
        if not rows:
            click.echo("nothing was sent or received yet")

    session.show(found, tell)
