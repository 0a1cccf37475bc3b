"""What peers have under way here: each channel is a Reception, each VM that comes a Flow; what ended goes into the history.

Threads: a Reception has one at a time; the rest any.
"""

from __future__ import annotations

import threading

from blockdev.clock import monotonic_seconds
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.replicate.answers import Answers
from blockdev.replicate.control import Begin
from blockdev.replicate.flow import Count, Flow, Moving
from blockdev.replicate.frames import Frame, Message
from blockdev.replicate.holding import Holds
from blockdev.replicate.ledger import Ledger
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.space import PeerSpace
from blockdev.replicate.store import PeerStore
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_replication import PeerRow
from blockdev.vmmap.events import Events
from blockdev.vmmap.service import VMs

FLOWS_MAX = 4096  # then those that are still are forgotten: a peer may begin VMs without end
Key = tuple[int, str, str, str]  # peer id, purpose, uuid of the VM at the peer, name of a copy


class Inbound:
    """One home's."""

    def __init__(
        self,
        vms: VMs,
        catalog: Catalog,
        engine: EngineClient,
        answers: Answers,
        events: Events,
        ledger: Ledger,
    ) -> None:
        self._vms = vms
        self._engine = engine
        self._answers = answers
        self._space = PeerSpace(vms.peer_bytes)
        self._holds = Holds()
        self.catalog = catalog
        self.events = events
        self.ledger = ledger
        self._lock = threading.Lock()
        self._flows: dict[Key, Flow] = {}

    def open(self, peer: PeerRow) -> Reception:
        """A channel that a peer has opened."""
        store = PeerStore(
            *(self._vms, self._engine, peer.id, self._space, self._holds),
            lambda what, given: self._answers.answer(peer.id, what, given),
        )
        return Reception(self, peer, Receiver(store))

    def flows(self) -> list[Flow]:
        with self._lock:
            return list(self._flows.values())

    def flow(self, peer_id: int, vm_uuid: str) -> Flow | None:
        """Of a VM that is protected."""
        with self._lock:
            return self._flows.get((peer_id, "protect", vm_uuid, ""))

    def flow_of(self, peer: PeerRow, begin: Begin, vm: str) -> Flow:
        """The one that there is, or a new one."""
        vm_uuid = begin.snapshot.vm_uuid
        with self._lock:
            if len(self._flows) >= FLOWS_MAX:
                self._flows = {key: flow for key, flow in self._flows.items() if flow.moving is not None}
            flow = self._flows.setdefault(_key(peer, begin), Flow("received", peer.name, vm, vm_uuid))
            flow.vm, flow.way = vm, peer.name
            return flow

    def forget_copy(self, peer: PeerRow, begin: Begin) -> None:
        """A copy that has ended comes no more."""
        with self._lock:
            self._flows.pop(_key(peer, begin), None)


def _key(peer: PeerRow, begin: Begin) -> Key:
    name = begin.vm_name or begin.snapshot.vm_name
    return peer.id, begin.purpose, begin.snapshot.vm_uuid, name if begin.purpose == "copy" else ""


class Reception:
    """A channel of a peer: a Receiver, and what is told of it."""

    def __init__(self, inbound: Inbound, peer: PeerRow, receiver: Receiver) -> None:
        self._inbound = inbound
        self._peer = peer
        self._receiver = receiver
        self._flow: Flow | None = None
        self._moving: Moving | None = None
        self._began = ""
        self._is_new = False  # it makes a VM that is received
        self._has_ended = False

    @property
    def is_closed(self) -> bool:
        return self._receiver.is_closed

    @property
    def is_done(self) -> bool:
        return self._receiver.is_done

    def handle(self, message: Message) -> list[Frame]:
        """The frames that answer a message; as Receiver.handle it never raises what is wrong with the other end."""
        answers = self._receiver.handle(message)
        if self._flow is None and self._receiver.begin is not None:
            self._begin()
        if self._receiver.is_closed:
            self._end()
        return answers

    def save(self) -> None:
        """As Receiver.save."""
        self._receiver.save()

    def close(self) -> None:
        """As Receiver.close."""
        self._receiver.close()
        self._end()

    def _moved(self) -> Count:
        return Count(self._receiver.logical_bytes, self._receiver.network_bytes)

    def _begin(self) -> None:
        begin = self._receiver.begin
        assert begin is not None
        copy = begin.snapshot
        known = self._inbound.catalog.vm_of_uuid(copy.vm_uuid)
        is_copy = begin.purpose == "copy"
        self._is_new = known is None and not is_copy
        name = copy.vm_name if is_copy or known is None else known.name
        self._began = self._inbound.ledger.now()
        self._flow = self._inbound.flow_of(self._peer, begin, begin.vm_name or name)
        self._moving = Moving(copy.name, copy.uuid, monotonic_seconds(), self._moved, lambda: None)
        self._flow.begin(self._moving)

    def _end(self) -> None:
        """Once."""
        if self._has_ended:
            return
        self._has_ended = True
        begin = self._receiver.begin
        if self._flow is None or self._moving is None or begin is None:
            return
        moved = self._flow.end(self._moving)
        if begin.purpose == "copy":
            self._inbound.forget_copy(self._peer, begin)
        error = self._receiver.error
        if not self._receiver.is_done and error is None:
            error = BlockdevError("the connection ended before the snapshot was whole: it goes on from there")
        snapshot = begin.snapshot.name, begin.snapshot.uuid
        self._inbound.ledger.put(self._flow, snapshot, self._began, moved, None if self._receiver.is_done else error)
        if self._receiver.is_done and self._is_new:
            self._tell_new(self._flow)

    def _tell_new(self, flow: Flow) -> None:
        made = self._inbound.catalog.vm_of_uuid(flow.vm_uuid)
        name = flow.vm if made is None else made.name
        self._inbound.events.note("info", "replication", name, f"it is received from peer {flow.way} now; its first snapshot is here")
