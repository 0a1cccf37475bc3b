"""blockdevctl attach: what to type or paste to use a disk."""

from __future__ import annotations

import click

from blockdev.cli import values
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.errors import InvalidArgument, NotFound
from blockdev.targets import attach_iscsi
from blockdev.targets.attach import FORMATS, NBD_PORT, Address, Format, Tls, describe

ISCSI = "iscsi"


@click.command(cls=Verb)
@click.argument("name", metavar="VM[/DISK[@SNAPSHOT]]", type=values.REF)
@click.option("--as", "form", type=click.Choice([*FORMATS, ISCSI]), default="uri", show_default=True, help="iscsi: also of a whole VM.")
@click.option("--host", type=values.HOST, metavar="HOST", help="From another machine: where it is served (serve --nbd, or the target's portals).")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help=f"Of serve --nbd there (default: {NBD_PORT}).")
@click.option("--tls", type=click.Choice(["none", "psk", "certificates"]), help="As serve --nbd has it there (default: none).")
@pass_session
def attach(session: Session, name: values.Ref, form: Format | str, host: str | None, port: int | None, tls: Tls | None) -> None:
    """Print how to attach a disk, or read-only a disk of a snapshot."""
    if (port or tls) and form == ISCSI:
        raise InvalidArgument("--port and --tls are for NBD: a target's portals have their ports, and iSCSI has no TLS")
    if (port or tls) and host is None:
        raise InvalidArgument("--port and --tls are for NBD from another machine: say --host HOST, too")
    if form == ISCSI:
        _attach_iscsi(session, name, host)
        return
    if name.disk is None:
        raise InvalidArgument(f"{str(name)!r} does not fit here: write VM/DISK[@SNAPSHOT]")
    export = _export(session, name)
    where = Address(host=host, port=port or NBD_PORT, tls=tls or "none") if host else Address(socket=session.home.nbd_socket)
    text = describe(form, where, export, read_only=name.snapshot is not None)
    session.say({"export": export, "as": form, "read_only": name.snapshot is not None, "text": text}, text)


def _attach_iscsi(session: Session, name: values.Ref, host: str | None) -> None:
    if name.snapshot is not None and name.disk is None:
        raise InvalidArgument(f"{str(name)!r} does not fit here: write VM, or VM/DISK[@SNAPSHOT]")
    target = session.client.get(f"/vms/{name.vm}/target")
    offer = attach_iscsi.offer_of(target, name.disk, name.snapshot, host)
    text = attach_iscsi.describe(offer)
    luns = [{"number": lun.number, "export": lun.export, "serial": lun.serial, "naa": lun.naa, "read_only": lun.read_only} for lun in offer.luns]
    document = {"vm": name.vm, "as": ISCSI, "iqn": offer.iqn, "portals": list(offer.portals), "luns": luns, "text": text}
    session.say(document, text)


def _export(session: Session, name: values.Ref) -> str:
    """The export's name, of a disk that is there."""
    path = f"/vms/{name.vm}/snapshots/{name.snapshot}" if name.snapshot else f"/vms/{name.vm}"
    for disk in session.client.get(path)["disks"]:
        if disk["name"] == name.disk:
            return str(disk["export"])
    whole = f"snapshot {name.vm}@{name.snapshot}" if name.snapshot else f"VM {name.vm}"
    raise NotFound(f"{whole} has no disk {name.disk}")
