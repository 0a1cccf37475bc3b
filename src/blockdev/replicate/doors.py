"""Who is let in, as what: the transport asks here.

Threads: any; `find_peer` waits for a short look into the catalog at the most.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from blockdev.errors import AlreadyExists, NotAllowed
from blockdev.replicate.inbound import Inbound, Reception
from blockdev.replicate.pairing import Invited
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_replication import PeerRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events


class Doors:
    """Those of one home."""

    def __init__(
        self,
        catalog: Catalog,
        inbound: Inbound,
        clock: Clock,
        events: Events,
        reached: Callable[[str], None],
        engine_answers: Callable[[float], bool],
    ) -> None:
        """engine_answers: EngineClient.answers.  reached: is told of the public key of a peer that comes, as it may be reached then, too."""
        self._catalog = catalog
        self._inbound = inbound
        self._clock = clock
        self._events = events
        self._reached = reached
        self.engine_answers = engine_answers

    def find_peer(self, key: str) -> PeerRow | None:
        """The peer of this key; None: nobody is let in with it."""
        return self._catalog.peer_of_key(key)

    def entered(self, peer: PeerRow) -> None:
        """A peer has connected."""
        self._reached(peer.key)

    def open(self, peer: PeerRow) -> Reception:
        """A channel of a peer, by what it may do now.  NotAllowed: it was removed, or has another key, since it logged in."""
        now = self._catalog.peer_of_key(peer.key)
        if now is None or now.id != peer.id:
            raise NotAllowed("that home is no peer here any more, or has another key by now")
        return self._inbound.open(now)

    def admit(self, invited: Invited, key: str) -> None:
        """Whoever had the code of an invitation is a peer from now on.  AlreadyExists: the name was taken meanwhile, or it is one."""
        with self._catalog.transaction(grows=True):
            known = self._catalog.peer_of_key(key)
            if known is not None:
                raise AlreadyExists(f"the other end knows this home already, as peer {known.name}: add the path with --key")
            if self._catalog.peer(invited.name) is not None:
                raise AlreadyExists(f"the other end has another peer {invited.name} by now: it has to invite this home by another name")
            self._catalog.put_peer(invited.name, key, json.dumps(list(invited.vms)), invited.space_bytes, to_text(self._clock()))
        self._events.note("info", "replication", None, f"paired with a home that is peer {invited.name} now")
