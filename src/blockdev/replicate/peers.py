"""Other homes that may send to this one: which, what, and how they are invited."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blockdev.addresses import show_address
from blockdev.constants import INVITATION_SECONDS_MAX
from blockdev.errors import AlreadyExists, BlockdevError, Busy, InvalidArgument
from blockdev.replicate.keys import fingerprint, parse_key
from blockdev.replicate.model import Identity, Invitation, Peer
from blockdev.replicate.pairing import Invited
from blockdev.replicate.parts import Parts
from blockdev.vmmap.catalog_replication import PeerRow
from blockdev.vmmap.clock import to_text

GLOBS_MAX = 100
GLOB_CHARACTERS_MAX = 63
SPACE_BYTES_MAX = 1 << 62
INVITATION_SECONDS = 600


class PeerOperations(Parts):
    """The operations on peers."""

    def identity(self) -> Identity:
        """Who this home is; its key is made when there is none yet.  MediumError."""
        own, listening = self._transport.own(), self._transport.listening
        return Identity(own.key, own.fingerprint, None if listening is None else show_address(*listening))

    def list_peers(self) -> list[Peer]:
        """By name; without what they use."""
        with self._catalog.transaction():
            return [self._view_peer(row) for row in self._catalog.peers()]

    def show_peer(self, name: str) -> Peer:
        """With what it uses.  NotFound."""
        with self._catalog.transaction():
            row = self._peer(name)
            shown = self._view_peer(row)
        try:
            return replace(shown, used_bytes=self._vms.peer_bytes(row.id))
        except BlockdevError:  # the engine is away
            return shown

    def add_peer(self, name: str, key: str, vms: Sequence[str] = (), space_bytes: int | None = None) -> Peer:
        """Let the home of this public key send VMs whose names match one of the globs `vms`; none: it may send nothing.

        space_bytes: what all it sends may take; None: no limit.  InvalidArgument; AlreadyExists: the name, or the key.
        """
        key = parse_key(key)
        globs = check_globs(vms)
        check_space(space_bytes)
        with self._catalog.transaction(grows=True):
            self._check_new_peer(name, key)
            self._catalog.put_peer(name, key, json.dumps(globs), space_bytes, self._now())
        return self.show_peer(name)

    def change_peer(self, name: str, change: Mapping[str, Any]) -> Peer:
        """Set what `change` names of vms, space_bytes and key; the others stay.  Transfers under way are held to it, too.

        InvalidArgument; NotFound; AlreadyExists: another peer has that key.
        """
        with self._catalog.transaction(grows=True):
            row = self._peer(name)
            key = parse_key(change.get("key", row.key))
            other = self._catalog.peer_of_key(key)
            if other is not None and other.id != row.id:
                raise AlreadyExists(f"that home is peer {other.name} already")
            globs = check_globs(change["vms"]) if "vms" in change else json.loads(row.vms)  # to which each reverse may have added
            space_bytes = check_space(change.get("space_bytes", row.space_bytes))
            self._catalog.put_peer(name, key, json.dumps(globs), space_bytes, row.created)
        if key != row.key:
            self._transport.disconnect_peer(row.key)
        return self.show_peer(name)

    def remove_peer(self, name: str, force: bool = False) -> Peer:
        """It may send nothing any more; what it was is returned.  VMs that came from it are VMs like others then.

        Busy: there are such, unless forced.  NotFound.
        """
        was = self.show_peer(name)
        if was.received and not force:
            raise Busy(f"VM {was.received[0]} is received from peer {name}: promote or delete it first, or force it (--force): it is a VM like others then")
        peer = self._peer(name)
        self._vms.forget_peer(peer.id)
        self._transport.disconnect_peer(peer.key)
        return was

    def invite(
        self, name: str, vms: Sequence[str] = (), space_bytes: int | None = None, seconds: int = INVITATION_SECONDS
    ) -> Invitation:
        """A code by which another home becomes peer `name`, once, within `seconds`; then as add_peer.

        InvalidArgument, also when this home does not listen; AlreadyExists.
        """
        globs, space_bytes = check_globs(vms), check_space(space_bytes)
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= INVITATION_SECONDS_MAX:
            raise InvalidArgument(f"an invitation is good for 1 to {INVITATION_SECONDS_MAX} seconds, not for {seconds!r}")
        self._check_new_peer(name)
        if self._transport.listening is None:
            raise InvalidArgument("this home listens for no peers: serve it with blockdevctl serve --replicate ADDR:PORT first")
        code, expires = self._transport.invite(Invited(name, globs, space_bytes), seconds)
        return Invitation(name, code, to_text(expires))

    def _view_peer(self, row: PeerRow) -> Peer:
        received = (self._catalog.vm_name(one.vm_id) for one in self._catalog.receiving_vms(row.id))
        path = next((path.name for path in self._catalog.paths() if path.key == row.key), None)
        return Peer(
            name=row.name,
            key=row.key,
            fingerprint=fingerprint(row.key),
            vms=json.loads(row.vms),
            space_bytes=row.space_bytes,
            used_bytes=None,
            received=sorted(name for name in received if name is not None),
            path=path,
            connected=row.key in self._transport.connected_keys(),
            created=row.created,
        )


def check_globs(globs: Any) -> list[str]:
    """InvalidArgument when these cannot be globs of VMs' names."""
    if isinstance(globs, str) or not isinstance(globs, list | tuple) or len(globs) > GLOBS_MAX:
        raise InvalidArgument(f"a peer's VMs are a list of at most {GLOBS_MAX} names or globs, such as web-*")
    for glob in globs:
        if not isinstance(glob, str) or not 0 < len(glob) <= GLOB_CHARACTERS_MAX or not glob.isprintable() or not glob.isascii():
            raise InvalidArgument(f"{glob!r} is no glob of VM names: take a name, or one with * and ?, such as web-*")
    return list(globs)


def check_space(space_bytes: Any) -> int | None:
    """InvalidArgument when this cannot be a limit of space."""
    if space_bytes is None:
        return None
    if isinstance(space_bytes, bool) or not isinstance(space_bytes, int) or not 0 < space_bytes <= SPACE_BYTES_MAX:
        raise InvalidArgument(f"{space_bytes!r} is no amount of space: give bytes, or nothing for no limit")
    return space_bytes
