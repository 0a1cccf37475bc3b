"""blockdevctl clone and restore: new VMs from snapshots, and old ones back to them."""

from __future__ import annotations

import click

from blockdev.cli import values
from blockdev.cli.output import ask, show_count
from blockdev.cli.session import Session, Verb, force_option, pass_session, yes_option
from blockdev.errors import InvalidArgument


@click.command(cls=Verb)
@click.argument("source", metavar="VM[@SNAPSHOT]", type=values.VM_MAYBE_SNAPSHOT)
@click.argument("name", metavar="[NAME]", type=values.VM, required=False)
@click.option("--count", type=click.IntRange(1, 500), help="How many clones.")
@click.option("--prefix", metavar="P", help="They are called P-1, P-2, ...")
@pass_session
def clone(session: Session, source: values.Ref, name: str | None, count: int | None, prefix: str | None) -> None:
    """Make new VMs from a snapshot; without @SNAPSHOT one is taken first."""
    many = count is not None and prefix is not None
    if (name is not None) == many or (count is None) != (prefix is None):
        raise InvalidArgument("say what to call it: clone VM[@SNAPSHOT] NAME, or --count N --prefix P")
    body = {"snapshot": source.snapshot, "name": name, "count": count, "prefix": prefix}
    made = session.client.post(f"/vms/{source.vm}/clones", body)
    clones = made["vms"]
    names = clones[0]["name"] if len(clones) == 1 else f"{clones[0]['name']} to {clones[-1]['name']}"
    session.say(made, f"made {show_count(len(clones), 'clone')} of {clones[0]['cloned_from']}: {names}")


@click.command(cls=Verb)
@click.argument("source", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.option("--disk", metavar="DISK", help="Only this disk.")
@force_option
@yes_option
@pass_session
def restore(session: Session, source: values.Ref, disk: str | None, force: bool, yes: bool) -> None:
    """Put a VM, or one disk, back to a snapshot; the state before is kept in another snapshot."""
    snapshot = session.client.get(f"/vms/{source.vm}/snapshots/{source.snapshot}")
    what = f"disk {source.vm}/{disk}" if disk else f"VM {source.vm}"
    ask(f"put {what} back to {source} of {snapshot['created']}; its present state becomes a snapshot", yes)
    body = {"snapshot": source.snapshot, "disk": disk, "force": force}
    done = session.client.post(f"/vms/{source.vm}/restore", body)
    kept = done["safety_snapshot"]
    before = f"; the state before is {source.vm}@{kept}" if kept else ""
    session.say(done, f"put {what} back to {source}{before}")
