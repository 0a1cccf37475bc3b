"""What all operations of replication share: the VMs, the catalog, the way to the other ends, finding what was named.

Threads: any.  Durable: whatever a method returned.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from blockdev.engine.client import EngineClient
from blockdev.errors import AlreadyExists, NotFound, Unavailable
from blockdev.home import Home
from blockdev.replicate.answers import Answers
from blockdev.replicate.carrier import Carrier
from blockdev.replicate.dispatcher import Dispatcher
from blockdev.replicate.doors import Doors
from blockdev.replicate.halt import Halt, Halted
from blockdev.replicate.inbound import Inbound
from blockdev.replicate.ledger import Ledger
from blockdev.replicate.pulse import Pulse
from blockdev.replicate.sender import Requester
from blockdev.replicate.transport import Transport
from blockdev.vmmap.catalog import Catalog, VMRow
from blockdev.vmmap.catalog_replication import PathRow, PeerRow, ProtectionRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events
from blockdev.vmmap.names import check_name
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs

ANSWER_SECONDS_MAX = 30.0


class Parts:
    """The base of the service's operations."""

    def __init__(
        self,
        home: Home,
        vms: VMs,
        catalog: Catalog,
        engine: EngineClient,
        clock: Clock,
        events: Events,
        recorder: Recorder,
        listen: tuple[str, int] | None = None,
    ) -> None:
        """listen: host and port where peers reach this home; None: they do not.  Nothing is begun yet."""
        self._home = home
        self._vms = vms
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._events = events
        self._recorder = recorder
        self._listen = listen
        ledger = Ledger(recorder, clock)
        self._answers = Answers(vms, catalog, clock, events, self._look, self._reach)
        self._inbound = Inbound(vms, catalog, engine, self._answers, events, ledger)
        self._doors = Doors(catalog, self._inbound, clock, events, self._reached, engine.answers)
        self._transport = Transport(home, listen, self._doors)
        self._carrier = Carrier(vms, engine, self._transport, events, ledger)
        self._dispatcher = Dispatcher(catalog, self._carrier.carry, clock, events, vms.is_labelling)
        self._pulse = Pulse(vms, self._dispatcher, self._inbound.flows, catalog, engine, clock, events, recorder)

    def _look(self, vm_id: int, at_once: bool = False) -> None:
        """Something is to be sent of this VM, or no more.  at_once: whatever the failures before."""
        self._dispatcher.look(vm_id, at_once)

    def _reach(self, path: PathRow) -> None:
        """Ask the other end of a path anything.  Raises why it does not answer."""
        self._ask(path, "test", {})

    def _reached(self, key: str) -> None:
        """The home of this public key is there."""
        self._dispatcher.reached(key)

    def _ask(
        self, path: PathRow, what: str, arguments: dict[str, Any], seconds: float = ANSWER_SECONDS_MAX
    ) -> dict[str, Any]:
        """The answer of a path's other end.  Unavailable: there is none in that time; what it refuses with."""
        return self._request(path, Requester(what, arguments), seconds)

    def _request(self, path: PathRow, requester: Requester, seconds: float) -> dict[str, Any]:
        halt = Halt()
        timer = threading.Timer(seconds, halt.say)
        timer.daemon = True
        timer.start()
        try:
            self._transport.run(path, requester, halt)
        except Halted:
            raise Unavailable(f"the other end of path {path.name} did not answer within {seconds:g} s") from None
        finally:
            timer.cancel()
        return requester.answer

    def _now(self) -> str:
        return to_text(self._clock())

    def _peer(self, name: str) -> PeerRow:
        row = self._catalog.peer(name)
        if row is None:
            raise NotFound(f"there is no peer {name}")
        return row

    def _path(self, name: str) -> PathRow:
        row = self._catalog.path_named(name)
        if row is None:
            raise NotFound(f"there is no path {name}: blockdevctl replicate path list shows those that there are")
        return row

    def _vm(self, name: str) -> VMRow:
        row = self._catalog.vm(name) if isinstance(name, str) else None
        if row is None:
            raise NotFound(f"there is no VM {name}")
        return row

    def _protections(self, vm: VMRow, path: str | None) -> Sequence[tuple[ProtectionRow, PathRow]]:
        """Those of a VM, or the one over a path.  NotFound: there is none."""
        wanted = None if path is None else self._path(path)
        found = [
            (row, way)
            for row in self._catalog.protections(vm.id)
            if (way := self._catalog.path_by_id(row.path_id)) is not None and wanted in (None, way)
        ]
        if not found:
            over = "" if path is None else f" over path {path}"
            raise NotFound(f"VM {vm.name} is not protected{over}: blockdevctl replicate protect {vm.name} --path PATH")
        return found

    def _check_new_peer(self, name: str, key: str | None = None) -> None:
        check_name("peer", name)
        if self._catalog.peer(name) is not None:
            raise AlreadyExists(f"there is a peer {name} already: choose another name, or change that one")
        other = None if key is None else self._catalog.peer_of_key(key)
        if other is not None:
            raise AlreadyExists(f"that home is peer {other.name} already: change that one")

