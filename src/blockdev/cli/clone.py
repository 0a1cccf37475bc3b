"""blockdevctl clone and restore: new VMs from snapshots, and old ones back to them."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.hypervisor import check_hypervisor, register_options, registered
from blockdev.cli.output import ask
from blockdev.cli.session import Session, Verb, force_option, pass_session, read_text, yes_option
from blockdev.errors import InvalidArgument, NotFound
from blockdev.written import show_count


@click.command(cls=Verb)
@click.argument("source", metavar="VM[@SNAPSHOT]", type=values.VM_MAYBE_SNAPSHOT)
@click.argument("name", metavar="[NAME]", type=values.VM, required=False)
@click.option("--count", type=click.IntRange(1, 500), help="How many clones.")
@click.option("--prefix", metavar="P", help="They are called P-1, P-2, ...; with node-## node-01, node-02, ...")
@click.option("--customize", is_flag=True, help="Give each a disk `seed` that tells cloud-init in its guest who it is.")
@click.option("--hostname", metavar="PATTERN", help="Such as web-@number@ (default: the clone's name).")
@click.option("--user-data", type=values.PATH, metavar="FILE", help="A template of cloud-init's user data.")
@click.option("--network-config", type=values.PATH, metavar="FILE", help="A template (default: DHCP on each interface).")
@register_options
@pass_session
def clone(
    session: Session,
    source: values.Ref,
    name: str | None,
    count: int | None,
    prefix: str | None,
    hypervisor: str | None,
    at_once: int | None,
    start: bool,
    **wanted: Any,
) -> int:
    """Make new VMs from a snapshot; without @SNAPSHOT one is taken first.

    In templates @name@, @hostname@, @number@, @uuid@ and @mac0@, @mac1@, ... are replaced.
    """
    if hypervisor is None and (start or at_once is not None):
        raise InvalidArgument("--start and --at-once are for clones that are registered: say --register NAME, too")
    many = count is not None and prefix is not None
    if (name is not None) == many or (count is None) != (prefix is None):
        raise InvalidArgument("say what to call it: clone VM[@SNAPSHOT] NAME, or --count N --prefix P")
    if hypervisor is not None:
        check_hypervisor(session, hypervisor)
    body = {"snapshot": source.snapshot, "name": name, "count": count, "prefix": prefix, "customize": _customize(**wanted)}
    made = session.client.post(f"/vms/{source.vm}/clones", body)
    clones = made["vms"]
    names = clones[0]["name"] if len(clones) == 1 else f"{clones[0]['name']} to {clones[-1]['name']}"
    hosts = list(made["hostnames"].values())
    called = f"; host names {hosts[0]}" + (f" to {hosts[-1]}" if len(hosts) > 1 else "") if hosts else ""
    sentence = f"made {show_count(len(clones), 'clone')} of {clones[0]['cloned_from']}: {names}{called}"
    if hypervisor is None:
        session.say(made, sentence)
        return 0
    if not session.json:
        click.echo(sentence)
    return registered(session, hypervisor, [clone["name"] for clone in clones], at_once, start, made)


def _customize(
    customize: bool, hostname: str | None, user_data: str | None, network_config: str | None
) -> dict[str, str | None] | None:
    """The field of the request; null: the clones get no seed."""
    if not customize:
        if hostname or user_data or network_config:
            raise InvalidArgument("--hostname, --user-data and --network-config go with --customize: say that, too")
        return None
    return {
        "hostname": hostname,
        "user_data": None if user_data is None else read_text(user_data),
        "network_config": None if network_config is None else read_text(network_config),
    }


@click.command(cls=Verb)
@click.argument("source", metavar="VM@SNAPSHOT", type=values.VM_SNAPSHOT)
@click.option("--disk", metavar="DISK", help="Only this disk.")
@click.option("--as", "beside", metavar="NEW", help="Replace nothing: make a new VM of it, or with --disk a new disk.")
@force_option
@yes_option
@pass_session
def restore(session: Session, source: values.Ref, disk: str | None, beside: str | None, force: bool, yes: bool) -> None:
    """Put a VM, or one disk, back to a snapshot; the state before is kept in another snapshot.

    It is refused while clients are attached; with --force they are cut off.  With --as it comes beside what is there.
    """
    if beside is not None:
        _restore_beside(session, source, disk, beside)
        return
    snapshot = session.client.get(f"/vms/{source.vm}/snapshots/{source.snapshot}")
    if disk is not None and disk not in [one["name"] for one in snapshot["disks"]]:
        raise NotFound(f"snapshot {source} has no disk {disk}")
    what = f"disk {source.vm}/{disk}" if disk else f"VM {source.vm}"
    ask(f"put {what} back to {source} of {snapshot['created']}; its present state becomes a snapshot", yes)
    body = {"snapshot": source.snapshot, "disk": disk, "force": force}
    done = session.client.post(f"/vms/{source.vm}/restore", body)
    kept = done["safety_snapshot"]
    before = f"; the state before is {source.vm}@{kept}" if kept else ""
    gone = f"; cut off: {', '.join(done['cut_off'])}" if done["cut_off"] else ""
    others = [one["name"] for one in done["vm"]["disks"] if one["name"] not in done["disks"]] if disk is None else []
    stays = f"; as it was, since {source} has none of that name: {', '.join(others)}" if others else ""
    session.say(done, f"put {what} back to {source}{stays}{before}{gone}")


def _restore_beside(session: Session, source: values.Ref, disk: str | None, beside: str) -> None:
    body = {"snapshot": source.snapshot, "disk": disk, "beside": beside}
    done = session.client.post(f"/vms/{source.vm}/restore", body)
    made = f"disk {source.vm}/{beside}" if disk else f"VM {beside}"
    of = f"{source.vm}/{disk}@{source.snapshot}" if disk else str(source)
    session.say(done, f"restored {of} as {made}; {source.vm} is as it was")
