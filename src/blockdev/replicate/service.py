"""The replication of one home, for the REST layer: peers, paths, protections, status, and the work of a disaster.

Threads: every method may be called from any thread.  Durable: whatever a method returned.
"""

from __future__ import annotations

from blockdev.clock import monotonic_seconds
from blockdev.replicate.disaster import DisasterOperations
from blockdev.replicate.paths import PathOperations
from blockdev.replicate.peers import PeerOperations
from blockdev.replicate.protections import ProtectionOperations
from blockdev.replicate.status import StatusOperations

STOP_SECONDS_MAX = 2.0  # all wait at once: a save takes tenths of a second, and one that hangs is of a second of work


class Replication(PeerOperations, PathOperations, ProtectionOperations, StatusOperations, DisasterOperations):
    """One home's replication, both ways."""

    def start(self) -> None:
        """Listen for peers, and send what is to be sent.  Busy: somebody else listens there."""
        self._transport.start()
        self._vms.on_snapshot = self._dispatcher.look
        self._dispatcher.start()
        self._pulse.start()

    def stop(self) -> None:
        """End what is under way, which goes on from there after the next start; within STOP_SECONDS_MAX, also when the engine hangs."""
        deadline = monotonic_seconds() + STOP_SECONDS_MAX
        self._pulse.stop()
        self._dispatcher.halt()
        self._transport.cut()
        self._dispatcher.stop(max(deadline - monotonic_seconds(), 0.0))
        self._transport.stop(max(deadline - monotonic_seconds(), 0.0))
