"""blockdevctl replicate promote, reverse, receive, clone and copy: when the other site is needed, and the tests before."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import ask
from blockdev.cli.peer import NAME
from blockdev.cli.session import Session, Verb, detach_option, force_option, pass_session, yes_option
from blockdev.errors import Busy

to_option = click.option("--path", "way", type=NAME, metavar="PATH", required=True, help="At the other end of this path.")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@click.option("--snapshot", metavar="NAME", help="That it goes on from (default: the newest).")
@yes_option
@pass_session
def promote(session: Session, vm: str, snapshot: str | None, yes: bool) -> None:
    """Let a received VM go on here by itself; the home that it comes from sends it no more.

    End the VM there first if it still runs: else there are two.
    """
    found = session.client.get(f"/vms/{vm}")
    received = found["received"]
    if received is None or received["promoted"]:
        raise Busy(f"VM {vm} is not received from anybody" if received is None else f"VM {vm} was promoted at {received['promoted']}")
    of = f"its snapshot {snapshot}" if snapshot else "its newest snapshot"
    ask(f"let VM {vm} go on here from {of}, and refuse what peer {received['peer']} sends of it", yes)
    done = session.client.post(f"/vms/{vm}/replication/promote", {"snapshot": snapshot})
    session.say(
        done,
        f"VM {vm} goes on from {vm}@{done['snapshot']} with {_disks(done)}; when {done['peer']} is back: "
        f"blockdevctl replicate reverse {vm} there",
    )


def _disks(done: dict[str, Any]) -> str:
    names = done["disks"]
    return f"disk{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else "no disks"


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@force_option
@yes_option
@pass_session
def reverse(session: Session, vm: str, force: bool, yes: bool) -> None:
    """On the former source, when the VM was promoted at the other end: receive it from there.

    What its disks hold beyond their newest snapshot is kept in a safety snapshot.  Only what differs is sent.
    """
    ask(f"take the disks of VM {vm} away here, keep what they hold in a snapshot, and receive the VM from the other end", yes)
    done = session.client.post(f"/vms/{vm}/replication/reverse", {"force": force})
    back = f" over its path {done['path']}" if done["path"] else ""
    session.say(done, f"VM {vm} is received from {done['peer']}{back} from now on{_safety(done)}")


@click.command(cls=Verb)
@click.argument("vm", type=values.VM)
@click.option("--from", "peer", type=NAME, metavar="PEER", required=True, help="The home that sends it from now on.")
@force_option
@yes_option
@pass_session
def receive(session: Session, vm: str, peer: str, force: bool, yes: bool) -> None:
    """Take a VM of this home as one that a peer sends: a seed that was carried here as a file, or one that goes back.

    What its disks hold beyond their newest snapshot is kept in a safety snapshot.
    """
    ask(f"take the disks of VM {vm} away here, keep what they hold in its snapshots, and let peer {peer} send it", yes)
    done = session.client.post(f"/vms/{vm}/replication/receive", {"peer": peer, "force": force})
    session.say(done, f"VM {vm} is received from {peer} from now on{_safety(done)}")


def _safety(done: dict[str, Any]) -> str:
    name = done["safety_snapshot"]
    return f"; what its disks held is {done['vm']}@{name}" if name else "; its disks held nothing beyond its newest snapshot"


@click.command(cls=Verb)
@click.argument("source", metavar="VM[@SNAPSHOT]", type=values.VM_MAYBE_SNAPSHOT)
@click.argument("name", metavar="NEWNAME", type=values.VM)
@to_option
@pass_session
def clone(session: Session, source: values.Ref, name: str, way: str) -> None:
    """Make a VM at the other end of a snapshot that is there, the newest without @SNAPSHOT; replication goes on."""
    body = {"path": way, "name": name, "snapshot": source.snapshot}
    made = session.client.post(f"/vms/{source.vm}/replication/clone", body)
    session.say(made, f"made VM {made['vm']} of {made['snapshot']} at the other end of path {way}")


@click.command(cls=Verb)
@click.argument("source", metavar="VM[@SNAPSHOT]", type=values.VM_MAYBE_SNAPSHOT)
@to_option
@click.option("--as", "name", type=values.VM, metavar="NEWNAME", help="What it is called there (default: as here).")
@detach_option
@pass_session
def copy(session: Session, source: values.Ref, way: str, name: str | None, detach: bool) -> None:
    """Send a VM to the other end once, as a VM of its own there; without @SNAPSHOT one is taken first."""
    body = {"path": way, "name": name or source.vm, "snapshot": source.snapshot}
    job = session.client.post(f"/vms/{source.vm}/replication/copy", body)
    if detach:
        session.leave(job)
        return
    made = session.follow(job, f"copying {source} over {way}", "what was sent is forgotten there")
    session.say(made, f"made VM {made['vm']} of {made['snapshot']} at the other end of path {way}")
