"""blockdevctl replicate: snapshots of VMs go to other homes, and come from there."""

from __future__ import annotations

import click

from blockdev.cli import disaster, path, peer, protection
from blockdev.cli.output import print_fields
from blockdev.cli.session import Noun, Session, pass_session


@click.group(cls=Noun)
def replicate() -> None:
    """Copies of VMs in other homes: docs/replication.md says how to begin."""


@replicate.command()
@pass_session
def identity(session: Session) -> None:
    """Show the public key by which other homes know this one, and where they reach it."""
    found = session.client.get("/replication/identity")

    def tell() -> None:
        listening = found["listening"] or "nowhere: start it with blockdevctl serve --replicate ADDR:PORT to receive"
        print_fields([("key", found["key"]), ("fingerprint", found["fingerprint"]), ("listens at", listening)])

    session.show(found, tell)


for _command in (
    peer.peer,
    path.path,
    protection.protect,
    protection.unprotect,
    protection.status,
    protection.now,
    protection.pause,
    protection.resume,
    protection.history,
    disaster.promote,
    disaster.reverse,
    disaster.receive,
    disaster.clone,
    disaster.copy,
):
    replicate.add_command(_command)
