"""What a peer may ask of this home beside sending: about its own VMs only (docs/format/replication.md).

Nothing of a request is trusted: each field is checked, and what is asked must be of a VM that came from that very peer.
Threads: any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from blockdev.constants import DURATION_SECONDS_MAX
from blockdev.errors import BlockdevError, Busy, InvalidArgument, NotAllowed, NotFound
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.catalog_replication import PathRow, PeerRow, ReceivedRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events
from blockdev.vmmap.names import check_name, is_name
from blockdev.vmmap.service import VMs

HAVE_MAX = 1000  # uuids of snapshots in a request
ERROR_CHARACTERS_MAX = 500

Answer = dict[str, Any]


class Answers:
    """To requests of peers."""

    def __init__(
        self,
        vms: VMs,
        catalog: Catalog,
        clock: Clock,
        events: Events,
        look: Callable[[int], None],
        reach: Callable[[PathRow], None],
    ) -> None:
        """look: has a VM looked at that is protected now.  reach: tries a path; raises why it does not work."""
        self._vms = vms
        self._catalog = catalog
        self._clock = clock
        self._events = events
        self._look = look
        self._reach = reach

    def answer(self, peer_id: int, what: str, arguments: Mapping[str, Any]) -> Answer:
        """InvalidArgument: nobody can ask that; NotAllowed: this peer may not; else what the operation raises."""
        peer = self._catalog.peer_by_id(peer_id)
        if peer is None:
            raise NotAllowed("that home is no peer here any more")
        known = {"test": self._test, "vm": self._tell_of_vm, "clone": self._clone, "reach": self._try_back, "reverse": self._reverse}
        if what not in known:
            raise InvalidArgument(f"this end knows no request {what}: it may be of an earlier version")
        return known[what](peer, arguments)

    def _test(self, peer: PeerRow, _arguments: Mapping[str, Any]) -> Answer:
        back = self._path_back(peer)
        return {
            "peer": peer.name,
            "vms": json.loads(peer.vms),
            "space_bytes": peer.space_bytes,
            "path_back": None if back is None else back.name,
        }

    def _tell_of_vm(self, peer: PeerRow, arguments: Mapping[str, Any]) -> Answer:
        vm = self._catalog.vm_of_uuid(_text(arguments, "vm_uuid"))
        received = None if vm is None else self._catalog.received_vm(vm.id)
        back = self._path_back(peer)
        returning = None if vm is None or back is None else self._returns(vm, back)
        if vm is None or ((received is None or received.peer_id != peer.id) and not returning):
            raise NotFound("the other end has no such VM that came from here")
        return {
            "name": vm.name,
            "peer": peer.name,
            "promoted": None if received is None else received.promoted,
            "path_back": None if back is None else back.name,
            "returns_over": back.name if returning and back is not None else None,
        }

    def _clone(self, peer: PeerRow, arguments: Mapping[str, Any]) -> Answer:
        name = check_name("VM", _text(arguments, "name"))
        if not matches(name, json.loads(peer.vms)):
            raise NotAllowed(f"the other end does not let this home make a VM {name}: its names there are {', '.join(json.loads(peer.vms)) or 'none'}")
        vm, _received = self._received(peer, arguments)
        snapshot = self._wanted(vm, None if arguments.get("snapshot_uuid") is None else _text(arguments, "snapshot_uuid"))
        self._vms.refuse_too_many_vms(peer.id)
        made = self._vms.clone_for_peer(vm.name, snapshot.name, name, peer.id)
        self._events.note("info", "replication", name, f"made of {vm.name}@{snapshot.name} for peer {peer.name}")
        return {"name": made.name, "uuid": made.uuid, "snapshot": snapshot.name}

    def _reverse(self, peer: PeerRow, arguments: Mapping[str, Any]) -> Answer:
        """The VM was promoted here, and is sent to the peer from now on, whose copy is one that is received."""
        back = self._required_path_back(peer)
        known = self._catalog.vm_of_uuid(_text(arguments, "vm_uuid"))
        if known is not None and self._returns(known, back):
            return {"path": back.name}
        vm, received = self._received(peer, arguments)
        if received.promoted is None:
            raise Busy(f"VM {vm.name} is not promoted at the other end: blockdevctl replicate promote {vm.name} there first")
        rpo_seconds, keep_seconds = (_seconds(arguments, field) for field in ("rpo_seconds", "keep_seconds"))
        common = self._newest_common(vm, _uuids(arguments, "have"))
        self._vms.refresh_config(vm.name)
        self._vms.create_snapshot(vm.name, None, f"when it was reversed, to peer {peer.name}")
        self._protect(vm, back, rpo_seconds, keep_seconds, common)
        self._events.note("warning", "replication", vm.name, f"reversed: it is protected over path {back.name} now, as peer {peer.name} asked")
        self._look(vm.id)
        return {"path": back.name}

    def _try_back(self, peer: PeerRow, _arguments: Mapping[str, Any]) -> Answer:
        """Whether the peer is reached from here, which it cannot know: before it gives a VM's disks up."""
        back = self._required_path_back(peer)
        try:
            self._reach(back)
        except BlockdevError as error:
            return {"path": back.name, "error": error.message[:ERROR_CHARACTERS_MAX]}
        return {"path": back.name, "error": None}

    def _required_path_back(self, peer: PeerRow) -> PathRow:
        back = self._path_back(peer)
        if back is None:
            raise Busy(f"the other end has no path to here: there, run blockdevctl replicate path add NAME HOST --peer {peer.name} first")
        return back

    def _protect(
        self, vm: VMRow, back: PathRow, rpo_seconds: int | None, keep_seconds: int | None, common: SnapshotRow | None
    ) -> None:
        """From the snapshot after `common` on, or else from the newest one."""
        now = to_text(self._clock())
        with self._catalog.transaction(grows=True):
            from_lsn = self._catalog.snapshots(vm.id)[-1].lsn if common is None else common.lsn + 1
            self._catalog.put_protection(vm.id, back.id, rpo_seconds, keep_seconds, from_lsn, now)
            if common is not None:
                self._catalog.note_replicated(vm.id, back.id, common.uuid, common.lsn, common.created, now)
            self._catalog.delete_received_vm(vm.id)

    def _received(self, peer: PeerRow, arguments: Mapping[str, Any]) -> tuple[VMRow, ReceivedRow]:
        vm = self._catalog.vm_of_uuid(_text(arguments, "vm_uuid"))
        received = None if vm is None else self._catalog.received_vm(vm.id)
        if vm is None or received is None or received.peer_id != peer.id:
            raise NotFound("the other end has no such VM that came from here")
        return vm, received

    def _wanted(self, vm: VMRow, uuid: str | None) -> SnapshotRow:
        """The snapshot of this uuid, or the newest one."""
        if uuid is None:
            found = next(reversed(self._catalog.snapshots(vm.id)), None)
        else:
            found = self._catalog.snapshot_of_uuid(vm.id, uuid)
        if found is None:
            raise NotFound(f"the other end does not have that snapshot of VM {vm.name}: it is not there yet, or was deleted there")
        return found

    def _newest_common(self, vm: VMRow, uuids: Sequence[str]) -> SnapshotRow | None:
        have = set(uuids)
        return next((one for one in reversed(self._catalog.snapshots(vm.id)) if one.uuid in have), None)

    def _path_back(self, peer: PeerRow) -> PathRow | None:
        return next((one for one in self._catalog.paths() if one.key == peer.key), None)

    def _returns(self, vm: VMRow, back: PathRow) -> bool:
        """Whether it is sent to the peer by now."""
        return any(one.path_id == back.id for one in self._catalog.protections(vm.id))


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a VM of this name is one of those that globs are for."""
    return is_name(name) and any(fnmatchcase(name, glob) for glob in globs)


def _text(arguments: Mapping[str, Any], field: str) -> str:
    found = arguments.get(field)
    if not isinstance(found, str):
        raise InvalidArgument(f"a request without {field}")
    return found


def _seconds(arguments: Mapping[str, Any], field: str) -> int | None:
    found = arguments.get(field)
    if found is not None and (type(found) is not int or not 0 < found <= DURATION_SECONDS_MAX):
        raise InvalidArgument(f"a request whose {field} cannot be")
    return found


def _uuids(arguments: Mapping[str, Any], field: str) -> list[str]:
    found = arguments.get(field)
    if not isinstance(found, list) or len(found) > HAVE_MAX or not all(isinstance(one, str) for one in found):
        raise InvalidArgument(f"a request whose {field} cannot be")
    return found
