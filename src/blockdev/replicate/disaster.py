"""When the other site is needed: promote, reverse, receive; and VMs that are made at the other end."""

from __future__ import annotations

import json
from typing import Any

from blockdev.errors import AlreadyExists, BlockdevError, Busy, NotFound, Unavailable
from blockdev.replicate.answers import HAVE_MAX, matches
from blockdev.replicate.model import Demoted, MadeThere, Promoted, Watcher
from blockdev.replicate.parts import Parts
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import PathRow, PeerRow
from blockdev.vmmap.names import check_name

CLONE_SECONDS_MAX = 120.0  # for the other end's answer
REVERSE_SECONDS_MAX = 120.0


class DisasterOperations(Parts):
    """The operations of the day when it counts, and of the tests before."""

    def promote(self, vm: str, snapshot: str | None = None) -> Promoted:
        """A received VM goes on by itself, from its newest snapshot or the named one; its peer is refused from then on.

        NotFound; InvalidArgument: it is not received, or promoted already; PoolFull.
        """
        row = self._vm(vm)
        received = self._catalog.received_vm(row.id)
        restored = self._vms.promote(vm, snapshot)
        peer = None if received is None else self._catalog.peer_by_id(received.peer_id)
        of = "" if peer is None else f"; peer {peer.name} can send no more of it"
        self._events.note("warning", "replication", vm, f"promoted to its snapshot {restored.snapshot}{of}")
        return Promoted(vm, restored.snapshot, "" if peer is None else peer.name, restored.disks)

    def receive(self, vm: str, peer: str, force: bool = False) -> Demoted:
        """A VM of this home is received from a peer from now on: adopt a seed that was imported, or go back to be the other end.

        What its disks hold beyond its newest snapshot is kept in a safety snapshot.  Forced, attached clients are cut off,
        and it is protected no more.  NotFound; Busy: clients are attached, or it is protected.
        """
        row, sender = self._vm(vm), self._peer(peer)
        protections = self._catalog.protections(row.id)
        if protections and not force:
            way = self._catalog.path_by_id(protections[0].path_id)
            raise Busy(
                f"VM {vm} is protected over path {way.name if way else '?'}: blockdevctl replicate unprotect {vm} first, or "
                f"blockdevctl replicate reverse {vm}, if it is to come back from there"
            )
        demoted = self._vms.demote(vm, sender.id, force)
        self._look(row.id)
        self._events.note("warning", "replication", vm, f"it is received from peer {peer} now, and has no disks of its own")
        return Demoted(vm, peer, demoted.safety_snapshot)

    def reverse(self, vm: str, force: bool = False) -> Demoted:
        """On the former source, when the other end has promoted the VM: it is received here from now on, and sent from there.

        Only what differs moves.  A reverse that was interrupted is done again, whole.  NotFound: it is not protected; Busy:
        it is not promoted there, there is no path back (the message says what to run there), or clients are attached,
        unless forced; Unavailable: the other end, or this one from there.
        """
        row = self._vm(vm)
        path, name_there = self._way_back(row)
        terms = next((one for one in self._catalog.protections(row.id) if one.path_id == path.id), None)
        sender = self._let_send({row.name, name_there}, path)
        self._check_way_back(path)
        demoted = self._vms.demote(vm, sender.id, force)
        self._look(row.id)
        received = self._catalog.received_vm(row.id)
        have = [one.uuid for one in reversed(self._catalog.snapshots(row.id))][:HAVE_MAX]
        answer = self._ask(
            path,
            "reverse",
            {
                "vm_uuid": row.uuid,
                "have": have,
                "rpo_seconds": None if received is None else received.rpo_seconds,  # an interrupted reverse knows it, too
                "keep_seconds": None if terms is None else terms.keep_seconds,
            },
            REVERSE_SECONDS_MAX,
        )
        there = _text(answer, "path")
        self._events.note("warning", "replication", vm, f"reversed: it is received from peer {sender.name} now, over path {there} of it")
        return Demoted(vm, sender.name, demoted.safety_snapshot, there)

    def clone_there(self, vm: str, snapshot: str | None, path: str, name: str) -> MadeThere:
        """A new VM at the other end, from a snapshot that it received (None: the newest one that it has).

        NotFound: it does not have it; AlreadyExists: there is a VM of that name there; NotAllowed; Unavailable.
        """
        check_name("VM", name)
        row, way = self._vm(vm), self._path(path)
        wanted = None if snapshot is None else self._snapshot(row, snapshot).uuid
        asked = {"vm_uuid": row.uuid, "snapshot_uuid": wanted, "name": name}
        answer = self._ask(way, "clone", asked, CLONE_SECONDS_MAX)
        return MadeThere(path, _text(answer, "name"), _text(answer, "uuid"), f"{vm}@{_text(answer, 'snapshot')}")

    def copy(self, vm: str, snapshot: str, path: str, name: str, watcher: Watcher) -> MadeThere:
        """A copy of a VM at the other end, made of a snapshot, on its own from the beginning.

        It goes on where it was when it was cut, for as long as it is waited for.  Cancelled; NotFound; AlreadyExists;
        NotAllowed; PoolFull: the other end's; Unavailable.
        """
        check_name("VM", name)
        row, way = self._vm(vm), self._path(path)
        wanted = self._snapshot(row, snapshot)

        def find_path() -> PathRow:
            found = self._catalog.path_by_id(way.id)
            if found is None:
                raise NotFound(f"path {way.name} was removed")
            return found

        self._carrier.copy(row, wanted, find_path, name, watcher)
        return MadeThere(path, name, None, f"{vm}@{wanted.name}")

    def _snapshot(self, vm: VMRow, name: str) -> SnapshotRow:
        found = self._catalog.snapshot(vm.id, name)
        if found is None:
            raise NotFound(f"VM {vm.name} has no snapshot {name}")
        return found

    def _way_back(self, vm: VMRow) -> tuple[PathRow, str]:
        """The path whose other end has promoted the VM, and has a path to here; what the VM is called there."""
        ways = [self._catalog.path_by_id(one.path_id) for one in self._catalog.protections(vm.id)]
        received = self._catalog.receiving_vm(vm.id)
        if received is not None:  # a reverse was interrupted
            peer = self._catalog.peer_by_id(received.peer_id)
            ways = [one for one in self._catalog.paths() if peer is not None and one.key == peer.key]
        refusal: BlockdevError = NotFound(f"VM {vm.name} is not protected over any path: there is nothing to reverse; if it was, protect it over that path again first")
        for way in ways:
            if way is None:
                continue
            try:
                return way, self._check_promoted(vm, way)
            except BlockdevError as error:
                refusal = error
        raise refusal

    def _check_promoted(self, vm: VMRow, way: PathRow) -> str:
        """What the VM is called there.  Busy: it cannot be sent back yet."""
        state = self._ask(way, "vm", {"vm_uuid": vm.uuid})
        name = check_name("VM", _text(state, "name"))
        if state.get("returns_over") is not None:  # it does already
            return name
        if state.get("promoted") is None:
            raise Busy(f"VM {vm.name} is not promoted at the other end of path {way.name}: blockdevctl replicate promote {vm.name} there first")
        if state.get("path_back") is None:
            raise Busy(
                f"the other end of path {way.name} has no path to this home: there, run blockdevctl replicate path add "
                f"NAME HOST --peer {state.get('peer')}, with this home's name or address, while this home listens (serve --replicate)"
            )
        return name

    def _check_way_back(self, path: PathRow) -> None:
        """Before the disks go here: that the other end reaches this home."""
        answer = self._ask(path, "reach", {}, REVERSE_SECONDS_MAX)
        error = answer.get("error")
        if error is not None:
            listens = "" if self._listen else "; this one listens for no peers: serve it with blockdevctl serve --replicate ADDR:PORT"
            raise Unavailable(f"the other end does not reach this home over its path {_text(answer, 'path')}: {error}{listens}")

    def _let_send(self, names: set[str], way: PathRow) -> PeerRow:
        """The other end as a peer that may send a VM of these names, one at each end: whoever reverses it says so."""
        with self._catalog.transaction(grows=True):
            row = self._catalog.peer_of_key(way.key)
            globs = [] if row is None else json.loads(row.vms)
            if row is None and self._catalog.peer(way.name) is not None:
                raise AlreadyExists(f"peer {way.name} is another home than that at the end of path {way.name}: rename the path, or add that home as a peer")
            lacking = sorted(one for one in names if not matches(one, globs))
            if row is None or lacking:
                name = way.name if row is None else row.name
                space_bytes = None if row is None else row.space_bytes
                created = self._now() if row is None else row.created
                self._catalog.put_peer(name, way.key, json.dumps([*globs, *lacking]), space_bytes, created)
            found = self._catalog.peer_of_key(way.key)
            assert found is not None
            return found


def _text(answer: dict[str, Any], field: str) -> str:
    found = answer.get(field)
    if not isinstance(found, str):
        raise BlockdevError(f"the other end answered without {field}: it may be of another version")
    return found
